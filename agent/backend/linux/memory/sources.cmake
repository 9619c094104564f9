# memory/: memory map, trackers, copying, verify. Trackers enter themselves by name, so this
# is an OBJECT library.
baton_objects(linux_memory SOURCES
  memory/memory_map.cc memory/tracker.cc memory/pagemap.cc memory/wp_async.cc memory/scan.cc
  memory/soft_dirty.cc memory/copier.cc memory/copier_parallel.cc
  memory/content.cc memory/vm_flags.cc memory/address_space.cc memory/shared_object.cc
  DEPS base proto dedup linux_remote)
