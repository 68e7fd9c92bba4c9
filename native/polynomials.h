// Made by polynomials.py. Errors are measured in float, against double precision.
#pragma once

// Lowest power first; largest error 6.5e-07 for x from -12 to 12.
constexpr int GELU_DEGREE = 14;
constexpr float GELU[] = {
    0.13465934991836548f,
    -0.06712685525417328f,
    0.049645986407995224f,
    -0.03976217284798622f,
    0.03202755004167557f,
    -0.02505319193005562f,
    0.01856592483818531f,
    -0.012732100673019886f,
    0.008328680880367756f,
    -0.005528017412871122f,
    0.0030397167429327965f,
    -0.0009698687354102731f,
    0.0005455136997625232f,
    -0.0006798868998885155f,
    0.00027746002888306975f};

constexpr float GELU_CLAMP = 5.25f;
constexpr float GELU_SCALE = 0.07256235927343369f;

// Lowest power first; largest relative error 2.2e-07 for x from -1/2 to 1/2.
constexpr int EXP2_DEGREE = 5;
constexpr float EXP2[] = {
    1.0000001192092896f,
    0.6931471824645996f,
    0.2402210682630539f,
    0.055503569543361664f,
    0.009676031768321991f,
    0.0013390863314270973f};

