"""What a benchmark ran on."""

from worker.bench.machine import machine as machine
