# remote/: stop, inject, read and write a foreign thread.
set(baton_linux_arch ${CMAKE_SYSTEM_PROCESSOR})
if(baton_linux_arch STREQUAL "x86_64" OR baton_linux_arch STREQUAL "AMD64")
  set(baton_linux_arch_sources remote/arch/x86_64/x86_64.cc remote/arch/x86_64/slot.S)
else()
  message(FATAL_ERROR "The linux backend has no remote/arch/${baton_linux_arch}")
endif()
baton_room(linux_remote SOURCES
  remote/tracee.cc remote/tracee_wait.cc remote/tracee_inject.cc remote/proc.cc
  remote/freeze.cc remote/ptrace_thread.cc remote/syscall_watch.cc
  ${baton_linux_arch_sources}
  DEPS base proto Threads::Threads)
