// StoreService: what the coordinator asks of this node's store: state, collection, integrity
// (and healing from other nodes' stores), tags, and what is in it. Reads the store beside
// everything else that goes on; never touches a program.
// Threads: gRPC's. Long calls (verify, analyze, diff, export): at most kMaxLongCalls at once.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "proto/store.grpc.pb.h"
#include "storage/catalog.h"
#include "transport/identity.h"

namespace baton::node {

inline constexpr int kMaxLongCalls = 2;

struct StoreServiceOptions {
  std::string node;
  storage::Store* store = nullptr;           // outlives the service
  const transport::TlsFiles* tls = nullptr;  // to heal from other nodes; null: only reports
  std::uint64_t budget_bytes = 0;
};

std::unique_ptr<grpc::Service> make_store_service(StoreServiceOptions options);

}  // namespace baton::node
