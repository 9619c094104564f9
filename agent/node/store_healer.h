// heal: brings back what verify found damaged here from the stores of other nodes, over the
// page stream: pages checked against their digests, manifests against the committed checksum.
// Threads: any; one connection per replica at a time.
#pragma once

#include <vector>

#include "proto/store.pb.h"
#include "storage/catalog.h"
#include "transport/identity.h"

namespace baton::node {

// Tries each replica in turn for what is still damaged; fills in healed_from and healed_pages.
// What nobody can give stays as it is: that is no error.
void heal(storage::Store& store, const transport::TlsFiles& tls,
          const std::vector<pb::PeerAddress>& replicas, const storage::VerifyResult& found,
          pb::StoreVerifyReport& report);

}  // namespace baton::node
