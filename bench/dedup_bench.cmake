baton_program(bench_dedup SOURCES dedup_bench.cc DEPS base dedup storage)
