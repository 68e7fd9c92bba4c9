"""What the tests of building models share; all of them are skipped where torch is missing."""
