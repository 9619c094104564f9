# Pause, tracking, scan and copy of the linux backend.
if(TARGET baton_linux_attachment)
  baton_program(bench_capture SOURCES capture_bench.cc
    DEPS base proto linux_remote linux_state linux_memory linux_attachment)
  add_dependencies(bench_capture bench_writer)
  target_compile_definitions(bench_capture PRIVATE BENCH_WRITER="$<TARGET_FILE:bench_writer>")
  baton_program(bench_tracking SOURCES tracking_bench.cc
    DEPS base proto linux_remote linux_state linux_memory linux_attachment)
  add_dependencies(bench_tracking bench_writer)
  target_compile_definitions(bench_tracking PRIVATE BENCH_WRITER="$<TARGET_FILE:bench_writer>")
  baton_program(bench_slowdown SOURCES slowdown_bench.cc
    DEPS base proto linux_remote linux_state linux_memory linux_attachment)
  add_dependencies(bench_slowdown bench_kernels)
  target_compile_definitions(bench_slowdown PRIVATE BENCH_KERNELS="$<TARGET_FILE:bench_kernels>")
endif()
