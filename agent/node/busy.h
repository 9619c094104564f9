// Node::Busy: marks a name as under work for the length of a scope; a second one fails.
#pragma once

#include <string>
#include <utility>

#include "agent/node/node.h"

namespace baton::node {

class Node::Busy {
 public:
  static Result<Busy> take(Node& node, const std::string& name) {
    std::lock_guard lock(node.mutex_);
    if (!node.busy_.insert(name).second) {
      return make_error(Code::kConflict, "workload", name + ": another request about it is under way");
    }
    return Busy(node, name);
  }
  Busy() = default;
  Busy(Busy&& o) noexcept : node_(std::exchange(o.node_, nullptr)), name_(std::move(o.name_)) {}
  Busy& operator=(Busy&& o) noexcept {
    std::swap(node_, o.node_);
    std::swap(name_, o.name_);
    return *this;
  }
  ~Busy() {
    if (!node_) return;
    std::lock_guard lock(node_->mutex_);
    node_->busy_.erase(name_);
  }

 private:
  Busy(Node& node, std::string name) : node_(&node), name_(std::move(name)) {}
  Node* node_ = nullptr;
  std::string name_;
};

}  // namespace baton::node
