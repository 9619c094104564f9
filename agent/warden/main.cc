// baton-warden over the linux backend.
#include "agent/backend/linux/restore/launch.h"
#include "agent/warden/program.h"

int main(int argc, char** argv) {
  using namespace baton;
  return warden::warden_main(argc, argv, "linux",
                             [](const warden::LaunchTarget& target) -> Result<warden::LaunchedProgram> {
                               BATON_ASSIGN(restore::Launched launched,
                                            restore::launch({target.spec, target.cgroup, target.log_path,
                                                             target.exit_path, target.equip}));
                               return warden::LaunchedProgram{launched.root, launched.keeper};
                             });
}
