baton_program(bench_store SOURCES store_bench.cc DEPS base dedup storage)
# A peer, where it is installed (Debian: librocksdb-dev); without it that row is not measured.
find_path(ROCKSDB_INCLUDE rocksdb/db.h)
find_library(ROCKSDB_LIBRARY rocksdb)
if(ROCKSDB_INCLUDE AND ROCKSDB_LIBRARY)
  target_compile_definitions(bench_store PRIVATE BATON_HAVE_ROCKSDB)
  target_link_libraries(bench_store PRIVATE ${ROCKSDB_LIBRARY})
endif()
