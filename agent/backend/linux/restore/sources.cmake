# restore/: build processes from a manifest; launch fresh ones; the keeper.
baton_room(linux_restore SOURCES
  restore/activation.cc restore/address_space.cc restore/attributes.cc restore/build.cc
  restore/connections.cc restore/credentials.cc restore/follow.cc restore/follow_files.cc restore/ipc.cc restore/keeper_client.cc
  restore/launch.cc restore/open_files.cc
  restore/open_sockets.cc restore/open_unix_sockets.cc restore/puppet.cc restore/puppet_code.S restore/socket_calls.cc restore/tcp.cc restore/terminals.cc restore/timers.cc restore/tree.cc restore/udp.cc restore/volumes.cc
  DEPS base proto linux_state volume)

# Static, so that it needs nothing of the machine's libraries, and never sanitised:
# blank processes are copies of it.
baton_program(baton-keeper SOURCES restore/keeper_main.cc)
target_compile_options(baton-keeper PRIVATE -fno-sanitize=all -fno-pie -fno-exceptions -fno-rtti -O2)
target_link_options(baton-keeper PRIVATE -fno-sanitize=all -static -no-pie)
set_target_properties(baton-keeper PROPERTIES POSITION_INDEPENDENT_CODE OFF)
