# state/: everything of a stopped tree that is not memory.
find_package(OpenSSL REQUIRED)
baton_room(linux_state SOURCES
  state/capture.cc state/carried_files.cc state/describe_files.cc state/descriptors.cc state/fdinfo.cc state/inspect.cc state/ipc.cc state/known_descriptors.cc state/machine.cc
  state/options.cc state/pipes.cc state/process.cc state/queues.cc state/repair_guard.cc state/sockets.cc
  state/tcp.cc state/terminals.cc state/threads.cc state/timed_calls.cc state/udp.cc state/unix_queues.cc state/unix_sockets.cc state/watches.cc
  DEPS base proto linux_remote OpenSSL::Crypto)
