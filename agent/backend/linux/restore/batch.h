// Batch: system calls of one puppet, collected with the bytes that their arguments point to,
// and made in as few stops as fit.
// Threads: the puppet's.
#pragma once

#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "agent/backend/linux/restore/puppet.h"

namespace baton::restore {

class Batch {
 public:
  Batch(Puppet& puppet, std::string subject) : puppet_(puppet), subject_(std::move(subject)) {}

  // Where `bytes` will be while the calls added from now on are made; valid until the next
  // `room` that has to make room.
  std::uint64_t bytes(std::span<const std::byte> content) {
    data_.resize((data_.size() + 15) & ~std::size_t{15});
    std::uint64_t at = puppet_.data() + data_.size();
    data_.insert(data_.end(), content.begin(), content.end());
    return at;
  }
  template <typename T>
  std::uint64_t value(const T& content) { return bytes(std::as_bytes(std::span(&content, 1))); }

  // To be asked before the arguments of a call: `wanted` bytes and that many calls fit.
  Result<void> room(std::size_t wanted = 512, std::size_t calls = 8) {
    if (data_.size() + wanted + 64 <= kAreaDataBytes && calls_.size() + calls <= kMaxBatch) return {};
    return run();
  }

  void add(const char* what, long number, std::initializer_list<std::uint64_t> args, std::uint64_t flags = 0) {
    PuppetRecord r;
    r.number = static_cast<std::uint64_t>(number);
    std::size_t i = 0;
    for (std::uint64_t a : args) r.args[i++] = a;
    r.flags = flags;
    calls_.push_back(r);
    names_.push_back(what);
  }

  // Makes what was collected. Fails: the first call that failed without kMayFail, by name.
  Result<void> run() {
    if (calls_.empty()) {
      data_.clear();
      return {};
    }
    if (!data_.empty()) BATON_TRY(puppet_.put(data_));
    BATON_ASSIGN(std::size_t done, puppet_.batch(calls_));
    Result<void> result;
    if (done > 0 && (calls_[done - 1].flags & kMayFail) == 0) {
      std::int64_t answer = calls_[done - 1].answer;
      if (answer < 0 && answer >= -4095) result = errno_error(static_cast<int>(-answer), names_[done - 1], subject_);
    }
    calls_.clear();
    names_.clear();
    data_.clear();
    return result;
  }

 private:
  Puppet& puppet_;
  const std::string subject_;
  std::vector<PuppetRecord> calls_;
  std::vector<const char*> names_;
  std::vector<std::byte> data_;
};

}  // namespace baton::restore
