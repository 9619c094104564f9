#include "coordinator/voter.h"

#include "base/log.h"

namespace baton::coordinator {
namespace {
constexpr std::chrono::milliseconds kLookForNodes{500};
}

Result<std::unique_ptr<Voter>> Voter::start(const std::string& rpc_listen, const std::string& folder,
                                            const transport::TlsFiles& tls, Coordinator& core) {
  pb::PeerAddress own;
  own.set_rpc(rpc_listen);
  const std::string listen = tenure::tenure_address(own);
  if (listen.empty() || rpc_listen.ends_with(":0")) {
    return make_error(Code::kInvalid, "vote", "there is no port above " + rpc_listen);
  }
  std::unique_ptr<Voter> voter(new Voter());
  Voter* raw = voter.get();
  tenure::Host::Handlers handlers;
  handlers.tip = [](const std::string&) { return pb::TenureTip(); };
  handlers.knows_commits = [](const std::string&) { return false; };
  handlers.problem = [](const std::string& text) {
    if (!text.empty()) spdlog::error("tenure: this coordinator cannot vote: {}", text);
  };
  handlers.effect = [raw](const tenure::Effect& effect) {
    // What does not fit is told by its owner, too.
    if (effect.kind == tenure::EffectKind::kDecided) (void)raw->heard_.try_push(effect.record);
  };
  BATON_ASSIGN(voter->host_, tenure::Host::start({std::string(transport::kCoordinatorPeer), listen, folder + "/tenure"},
                                                 tls, std::move(handlers)));
  voter->follower_ = std::thread([raw, &core] {
    while (!raw->ending_) {
      if (auto record = raw->heard_.pop_for(kLookForNodes)) core.follow_record(*record);
      // Of two peers the one whose name comes first calls: that may be this one.
      for (const auto& peer : core.peers()) raw->host_->know(peer);
    }
  });
  core.set_voter_address(rpc_listen);
  return voter;
}

Voter::~Voter() {
  ending_ = true;
  heard_.close();
  if (follower_.joinable()) follower_.join();
  host_.reset();
}

}  // namespace baton::coordinator
