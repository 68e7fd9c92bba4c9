"""How near the engine is to what the silicon can do, and how far ahead of stock onnxruntime.

    python -m benchmarks.engine [--size mini] [--size base] [--rounds 15]

Random weights, which speed does not depend on, in one run, one thread, round by round in turn:

- ours, the graph that `worker prepare` writes, with all activations quantized by row;
- the same with scales that are fixed after normalizations (`worker prepare --calibrate`);
- its bare matrix products, the same MatMulIntegerToFloat shapes with nothing between them;
- stock: the same weights as torch exports them, through onnxruntime's quantize_dynamic;
- u8 x u8: fixed scales, by the products that are exact on CPUs without VNNI.

Ratios are medians over the rounds. Where there is a C compiler and the CPU's best int8 instruction is
VNNI's dot product, a loop of these in registers measures the core's int8 peak. Needs the extra `build`.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from worker.bench.machine import machine
from worker.build.graph import largest_normalized, write_graph
from worker.defaults import TOKEN_BUDGET
from worker.inference.artifact import GRAPH_FILE, WEIGHTS_FILE, Shape
from worker.inference.cpu import cpu_flags
from worker.inference.onnxruntime_engine import int8_products_saturate, open_session, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

LENGTHS = (5, 6, 7, 8)
LABELS = 7
# Warm-up, and the least time of one measurement.
WARM_UP = 3
OPSET = 17


SIZES = {
    "mini": Shape(layers=6, dim=384, inner=1536, heads=12),
    "base": Shape(layers=6, dim=768, inner=3072, heads=12),
}


def random_model(size: Shape, vocabulary: int = 30_522) -> DistilBertForSequenceClassification:
    torch.manual_seed(1)
    # transformers takes these, too, but its signature does not say so.
    more: dict[str, Any] = {"num_labels": LABELS, "attn_implementation": "eager"}
    config = DistilBertConfig(
        vocab_size=vocabulary,
        dim=size.dim,
        hidden_dim=size.inner,
        n_heads=size.heads,
        n_layers=size.layers,
        **more,
    )
    return DistilBertForSequenceClassification(config).eval()  # type: ignore[no-untyped-call,no-any-return]


def our_sessions(
    model: DistilBertForSequenceClassification, folder: Path
) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """Return our graph, by row and with fixed scales."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    heads, exact = model.config.n_heads, int8_products_saturate()
    write_graph(folder, weights, heads=heads)
    by_row = session_of(folder, exact=exact)
    normalized = largest_normalized(folder, [random_ids(10, 10).tolist()])
    write_graph(folder, weights, heads=heads, normalized=normalized)
    return by_row, session_of(folder, exact=exact)


def session_of(folder: Path, *, exact: bool) -> ort.InferenceSession:
    graph, weights = (folder / GRAPH_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes()
    return open_session(graph, weights, exact_products=exact)


def stock_session(model: DistilBertForSequenceClassification, folder: Path) -> ort.InferenceSession:
    """Export and quantize as onnxruntime's own guide does, with its default optimizations."""
    plain, quantized = folder / "plain.onnx", folder / "quantized.onnx"
    ids = torch.ones(2, 5, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            plain,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes={
                name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask")
            },
            opset_version=OPSET,
            dynamo=False,
        )
    logging.disable(logging.WARNING)
    quantize_dynamic(plain, quantized, weight_type=QuantType.QInt8)
    return ort.InferenceSession(quantized, one_thread(), ["CPUExecutionProvider"])


def bare_session(
    shapes: Sequence[tuple[int, int, int]],
) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """Return the products alone, and their activations; of each result one number is kept."""
    rng = np.random.default_rng(1)
    nodes, feeds = [], {}
    constants: dict[str, NDArray[Any]] = {}
    constants["scale"] = np.array(1, dtype=np.float32)
    constants["zero"] = np.array(128, dtype=np.uint8)
    constants |= {"from": np.zeros(2, dtype=np.int64), "to": np.ones(2, dtype=np.int64)}
    kept = [f"kept_{number}" for number in range(len(shapes))]
    for number, (rows, depth, columns) in enumerate(shapes):
        activations = f"a_{rows}_{depth}"
        feeds[activations] = rng.integers(0, 256, (rows, depth), dtype=np.uint8)
        weight, scales = f"w_{number}", f"s_{columns}"
        constants[weight] = rng.integers(-127, 128, (depth, columns), dtype=np.int8)
        constants[scales] = np.ones(columns, dtype=np.float32)
        inputs = [activations, weight, "scale", scales, "zero"]
        product = f"p_{number}"
        nodes.append(
            helper.make_node("MatMulIntegerToFloat", inputs, [product], domain="com.microsoft")
        )
        nodes.append(helper.make_node("Slice", [product, "from", "to"], [kept[number]]))
    nodes.append(helper.make_node("Concat", kept, ["all"], axis=0))
    graph = helper.make_graph(
        nodes,
        "bare",
        [helper.make_tensor_value_info(n, TensorProto.UINT8, f.shape) for n, f in feeds.items()],
        [helper.make_tensor_value_info("all", TensorProto.FLOAT, [len(shapes), 1])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), one_thread()), feeds


def one_thread() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def random_ids(batch: int, tokens: int) -> NDArray[np.int64]:
    return np.random.default_rng(tokens).integers(1000, 20_000, (batch, tokens))


def in_turn(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of each call in each round, after some that do not count."""
    seconds: list[list[float]] = []
    for _ in range(WARM_UP + rounds):
        seconds.append([])
        for call in calls:
            begun = time.perf_counter()
            call()
            seconds[-1].append(time.perf_counter() - begun)
    return seconds[WARM_UP:]


def median_ratio(rounds: Iterable[Sequence[float]], above: int, below: int) -> float:
    return statistics.median(each[above] / each[below] for each in rounds)


# Twelve sums that do not wait for each other, each of 64 products and additions a time.
PEAK = r"""
#include <immintrin.h>
#include <stdio.h>
#include <time.h>
#define ADD(n) __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(s##n) : "v"(a), "v"(b));
int main(void) {
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5), s0, s1, s2, s3, s4, s5;
    s0 = s1 = s2 = s3 = s4 = s5 = _mm512_setzero_si512();
    __m512i s6 = s0, s7 = s0, s8 = s0, s9 = s0, s10 = s0, s11 = s0;
    const long times = 20000000;
    double best = 0;
    for (int run = 0; run < 5; run++) {
        struct timespec t0, t1;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        for (long n = 0; n < times; n++) {
            ADD(0) ADD(1) ADD(2) ADD(3) ADD(4) ADD(5) ADD(6) ADD(7) ADD(8) ADD(9) ADD(10) ADD(11)
        }
        clock_gettime(CLOCK_MONOTONIC, &t1);
        double seconds = t1.tv_sec - t0.tv_sec + 1e-9 * (t1.tv_nsec - t0.tv_nsec);
        double gops = times * 12 * 64 * 2 / seconds / 1e9;
        if (gops > best) best = gops;
    }
    printf("%f\n", best);
}
"""


def peak(folder: Path) -> float | None:
    """Return the int8 operations of a core, 10^9 a second; None where they are not measured.

    The loop multiplies with AVX512-VNNI, so it is no yardstick on a CPU with AMX, where onnxruntime
    multiplies with that.
    """
    compiler = shutil.which("cc")
    flags = cpu_flags()
    if compiler is None or "avx512_vnni" not in flags or "amx_int8" in flags:
        return None
    (folder / "peak.c").write_text(PEAK, encoding="ascii")
    program = str(folder / "peak")
    options = ["-O2", "-mavx512f", "-mavx512vnni", "-o", program, str(folder / "peak.c")]
    subprocess.run([compiler, *options], check=True)  # noqa: S603 - our own program
    result = subprocess.run([program], capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    return float(result.stdout.split()[0]) if result.returncode == 0 else None


def measure(name: str, rounds: int, most: float | None, folder: Path) -> None:
    size = SIZES[name]
    model = random_model(size)
    (by_row, fixed), stock = our_sessions(model, folder), stock_session(model, folder)
    widened = session_of(folder, exact=True)
    print(f"\n{name}: {size.layers} layers of {size.dim}, batches of {TOKEN_BUDGET} tokens")
    print("        us a text     over bare products  stock over    share of peak  u8 x u8")
    print("tokens  by row fixed  by row fixed        by row fixed  bare fixed     over fixed")
    for tokens in LENGTHS:
        batch = TOKEN_BUDGET // tokens
        shapes = size.products(batch, tokens)
        bare, feeds = bare_session(shapes)
        ids = random_ids(batch, tokens)
        inputs = packed(ids.tolist())
        times = in_turn(
            [
                partial(by_row.run, None, inputs),
                partial(fixed.run, None, inputs),
                partial(bare.run, None, feeds),
                partial(stock.run, None, {"input_ids": ids, "attention_mask": np.ones_like(ids)}),
                partial(widened.run, None, inputs),
            ],
            rounds,
        )
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        operations = 2 * sum(rows * depth * columns for rows, depth, columns in shapes)
        shares = [
            f"{operations / seconds / most / 1e9:.0%}" if most else "-" for seconds in medians
        ]
        print(
            f"{tokens:6}  {1e6 * medians[0] / batch:6.0f} {1e6 * medians[1] / batch:5.0f}"
            f"  {median_ratio(times, 0, 2):6.2f} {median_ratio(times, 1, 2):5.2f}       "
            f"  {median_ratio(times, 3, 0):6.2f} {median_ratio(times, 3, 1):5.2f}"
            f"  {shares[2]:>4} {shares[1]:>5}      {median_ratio(times, 4, 1):5.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the engine against its bare products.")
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        most = peak(Path(name))
        print(f"int8 peak of a core: {most:.0f} GOPS" if most else "int8 peak: not measured")
        for size in options.size or SIZES:
            folder = Path(name) / size
            folder.mkdir()
            measure(size, options.rounds, most, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
