if(TARGET baton_transport)
  baton_program(bench_stream SOURCES stream_bench.cc DEPS base dedup transport)
endif()
