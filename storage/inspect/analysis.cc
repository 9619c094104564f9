#include "storage/analysis.h"

#include <zstd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "base/check.h"
#include "dedup/duplication.h"
#include "storage/memory_map.h"
#include "storage/pages/frame.h"

namespace baton::storage {
namespace {

using dedup::kPageBytes;
using dedup::OriginCounts;
using dedup::PageOrigin;

// Pages counted under one heading, and what measuring some of them gave.
struct Tally {
  OriginCounts counts;
  std::uint64_t measured = 0;     // pages
  double zstd_saved = 0, delta_saved = 0;  // bytes, of the measured
};

// A run of new pages of one checkpoint that the store would keep in one frame.
struct Frame {
  struct Page {
    Digest now, before;
    std::vector<Tally*> under;
  };
  std::vector<Page> pages;
};

// Every k-th frame, k doubled whenever there are too many: an even sample of unknown length.
class Sample {
 public:
  explicit Sample(std::uint64_t pages) : most_(std::max<std::uint64_t>(pages / kFramePages, 1)) {}
  void add(Frame frame) {
    if (seen_++ % step_ != 0) return;
    frames_.push_back(std::move(frame));
    if (frames_.size() <= most_) return;
    std::vector<Frame> half;
    for (std::size_t i = 0; i < frames_.size(); i += 2) half.push_back(std::move(frames_[i]));
    frames_ = std::move(half);
    step_ *= 2;
  }
  std::vector<Frame>& frames() { return frames_; }

 private:
  const std::uint64_t most_;
  std::uint64_t seen_ = 0, step_ = 1;
  std::vector<Frame> frames_;
};

class Compressor {
 public:
  explicit Compressor(int level) : level_(level), context_(ZSTD_createCCtx()) { CHECK(context_); }
  // Bytes that the store would need: never more than raw.
  std::size_t packed(const std::byte* data, std::size_t bytes, const std::byte* prefix) {
    out_.resize(ZSTD_compressBound(bytes));
    ZSTD_CCtx_reset(context_.get(), ZSTD_reset_session_and_parameters);
    ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_compressionLevel, level_);
    if (prefix) ZSTD_CCtx_refPrefix(context_.get(), prefix, kPageBytes);
    const std::size_t n = ZSTD_compress2(context_.get(), out_.data(), out_.size(), data, bytes);
    return ZSTD_isError(n) ? bytes : std::min(n, bytes);
  }

 private:
  struct Free {
    void operator()(ZSTD_CCtx* c) const { ZSTD_freeCCtx(c); }
  };
  const int level_;
  std::unique_ptr<ZSTD_CCtx, Free> context_;
  std::vector<char> out_;
};

class Analysis {
 public:
  Analysis(Store& store, std::string workload, const AnalyzeOptions& options)
      : store_(store),
        workload_(std::move(workload)),
        options_(options),
        sample_(options.sample_pages == 0 ? kDefaultSamplePages : options.sample_pages),
        packer_(options.zstd_level) {}

  Result<pb::AnalyzeResponse> run() {
    const auto lease = store_.lease();
    BATON_TRY(choose());
    response_.set_name(workload_);
    for (std::size_t i = first_; i <= last_; ++i) BATON_TRY(add_checkpoint(list_[i]));
    BATON_TRY(measure());
    finish();
    return std::move(response_);
  }

 private:
  using Tables = std::map<std::uint64_t, dedup::PageTable>;

  Result<void> choose() {
    BATON_ASSIGN(list_, store_.list(workload_));
    const std::uint64_t from = options_.first_seq;
    const std::uint64_t to = options_.last_seq == 0 ? UINT64_MAX : options_.last_seq;
    if (from > to) {
      return make_error(Code::kInvalid, "analyze", workload_ + "@" + std::to_string(from) + ".." +
                                                       std::to_string(to) + " runs backwards");
    }
    bool any = false;
    for (std::size_t i = 0; i < list_.size(); ++i) {
      if (list_[i].seq < from || list_[i].seq > to) continue;
      if (!any) first_ = i;
      last_ = i;
      any = true;
    }
    if (!any) {
      return make_error(Code::kNotFound, "analyze", workload_ + " has no checkpoint in that range here",
                        "See baton checkpoints " + workload_ + ".");
    }
    BATON_ASSIGN(identity_, store_.identity(workload_));
    if (first_ == 0) return {};
    BATON_ASSIGN(auto before, store_.load_tables(workload_, list_[first_ - 1].seq));
    before_ = std::move(before.objects);
    before_seq_ = list_[first_ - 1].seq;
    for (const auto& [id, table] : before_) {
      table.for_each([&](std::uint64_t, const Digest& digest) {
        counter_.add_before(digest, before.info.freeze_wall_ns);
      });
    }
    return {};
  }

  Result<void> add_checkpoint(const CheckpointInfo& info) {
    auto loaded = store_.load(workload_, info.seq);
    if (!loaded) {
      // Dropped by retention since the list was made: the next one is compared further back.
      if (loaded.error().code == Code::kNotFound) return {};
      return loaded.error();
    }
    BATON_ASSIGN(const MemoryMap map, MemoryMap::parse(loaded->manifest));
    counter_.next_checkpoint(info.freeze_wall_ns);
    auto* out = response_.add_checkpoints();
    out->set_seq(info.seq);
    out->set_against(before_seq_);
    out->set_wall_ns(info.freeze_wall_ns);
    out->set_pages(info.pages);
    Tally& here = checkpoints_[info.seq];
    Frame frame;
    for (const auto& [id, table] : loaded->objects) {
      const dedup::PageTable nothing(identity_.kind);
      auto old = before_.find(id);
      dedup::PageTable::diff(
          old == before_.end() ? nothing : old->second, table,
          [&, object = id](std::uint64_t page, const Digest& was, const Digest& now) {
            if (!now.is_absent()) add_page(map, object, page, was, now, here, frame);
          });
    }
    if (!frame.pages.empty()) sample_.add(std::move(frame));
    before_ = std::move(loaded->objects);
    before_seq_ = info.seq;
    return {};
  }

  void add_page(const MemoryMap& map, std::uint64_t object, std::uint64_t page, const Digest& was,
                const Digest& now, Tally& here, Frame& frame) {
    const PageOrigin origin = counter_.add(now);
    const MappingView* mapping = map.find(object, page);
    const std::string name = mapping ? mapping->name : map.object_name(object);
    auto kind = mapping ? memory_kind_name(mapping->kind) : memory_kind_name(map.object_kind(object));
    std::string process = "shared by several";
    if (mapping && mapping->kind != MemoryKind::kShared) {
      const auto* state = map.process(mapping->pid);
      process = std::to_string(mapping->pid) + (state ? " " + state->comm() : "");
    } else if (!mapping) {
      process = map.object_name(object);
    }
    std::vector<Tally*> under = {&sum_, &here, &groups_[{"kind", std::string(kind)}],
                                 &groups_[{"mapping", name}], &groups_[{"process", process}]};
    for (Tally* tally : under) tally->counts.count(origin);
    if (origin != PageOrigin::kFresh) return;
    frame.pages.push_back({now, was, std::move(under)});
    if (frame.pages.size() == kFramePages) sample_.add(std::exchange(frame, {}));
  }

  Result<void> measure() {
    BATON_ASSIGN(auto hasher, store_.hasher(workload_));
    std::vector<std::byte> now(kFramePages * kPageBytes), before(kPageBytes);
    for (Frame& frame : sample_.frames()) {
      std::vector<PageGet> gets;
      for (const auto& page : frame.pages) gets.push_back({page.now, now.data() + gets.size() * kPageBytes});
      if (!store_.pages().get(identity_.domain, *hasher, gets)) continue;  // dropped or damaged
      const std::size_t raw = gets.size() * kPageBytes;
      const double share = static_cast<double>(packer_.packed(now.data(), raw, nullptr)) /
                           static_cast<double>(gets.size());
      for (std::size_t i = 0; i < frame.pages.size(); ++i) {
        const auto& page = frame.pages[i];
        double delta = 0;
        const PageGet old{page.before, before.data()};
        if (!page.before.is_absent() && !page.before.is_zero_page() &&
            store_.pages().get(identity_.domain, *hasher, std::span(&old, 1))) {
          const auto packed = packer_.packed(gets[i].out, kPageBytes, before.data());
          delta = std::max(0.0, share - static_cast<double>(packed));
        }
        for (Tally* tally : page.under) {
          ++tally->measured;
          tally->zstd_saved += static_cast<double>(kPageBytes) - share;
          tally->delta_saved += delta;
        }
      }
      measured_ += frame.pages.size();
    }
    return {};
  }

  pb::AnalyzeCounts counts_of(const Tally& tally) const {
    // A heading of which nothing was measured is like the whole.
    const Tally& from = tally.measured != 0 ? tally : sum_;
    const double scale = from.measured == 0 ? 0
                                            : static_cast<double>(tally.counts.fresh) /
                                                  static_cast<double>(from.measured);
    pb::AnalyzeCounts out;
    out.set_written(tally.counts.written());
    out.set_zero(tally.counts.zero);
    out.set_intra(tally.counts.intra);
    out.set_inter(tally.counts.inter);
    out.set_fresh(tally.counts.fresh);
    out.set_zero_bytes(tally.counts.zero * kPageBytes);
    out.set_intra_bytes(tally.counts.intra * kPageBytes);
    out.set_inter_bytes(tally.counts.inter * kPageBytes);
    const auto zstd = static_cast<std::uint64_t>(from.zstd_saved * scale);
    out.set_zstd_bytes(zstd);
    out.set_delta_bytes(static_cast<std::uint64_t>(from.delta_saved * scale));
    const std::uint64_t raw = tally.counts.fresh * kPageBytes;
    out.set_left_bytes(raw - std::min(raw, zstd));
    return out;
  }

  void finish() {
    for (auto& checkpoint : *response_.mutable_checkpoints()) {
      *checkpoint.mutable_counts() = counts_of(checkpoints_[checkpoint.seq()]);
    }
    *response_.mutable_sum() = counts_of(sum_);
    add_groups();
    auto fill = [](const std::vector<dedup::Bucket>& from, auto* to) {
      for (const auto& b : from) {
        auto* bucket = to->Add();
        bucket->set_from(b.from);
        bucket->set_to(b.to);
        bucket->set_contents(b.contents);
        bucket->set_pages(b.pages);
      }
    };
    fill(counter_.recurrence(), response_.mutable_recurrence());
    fill(counter_.age_in_checkpoints(), response_.mutable_age_checkpoints());
    fill(counter_.age_in_ms(), response_.mutable_age_ms());
    response_.set_measured_pages(measured_);
  }

  void add_groups() {
    for (const std::string by : {"kind", "mapping", "process"}) {
      std::vector<std::pair<std::string, const Tally*>> list;
      for (const auto& [key, tally] : groups_) {
        if (key.first == by) list.emplace_back(key.second, &tally);
      }
      std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) {
        return a.second->counts.written() > b.second->counts.written();
      });
      Tally rest;
      for (std::size_t i = 0; i < list.size(); ++i) {
        if (i + 1 >= kMaxAnalysedMappings && list.size() > kMaxAnalysedMappings) {
          rest.counts += list[i].second->counts;
          rest.measured += list[i].second->measured;
          rest.zstd_saved += list[i].second->zstd_saved;
          rest.delta_saved += list[i].second->delta_saved;
          continue;
        }
        add_group(by, list[i].first, *list[i].second);
      }
      if (rest.counts.written() != 0) add_group(by, "(all others)", rest);
    }
  }
  void add_group(const std::string& by, const std::string& name, const Tally& tally) {
    auto* group = response_.add_groups();
    group->set_by(by);
    group->set_name(name);
    *group->mutable_counts() = counts_of(tally);
  }

  Store& store_;
  const std::string workload_;
  const AnalyzeOptions options_;
  WorkloadIdentity identity_;
  std::vector<CheckpointInfo> list_;
  std::size_t first_ = 0, last_ = 0;
  Tables before_;
  std::uint64_t before_seq_ = 0;
  dedup::DuplicationCounter counter_;
  Sample sample_;
  Compressor packer_;
  Tally sum_;
  std::map<std::uint64_t, Tally> checkpoints_;
  std::map<std::pair<std::string, std::string>, Tally> groups_;  // addresses stay valid
  std::uint64_t measured_ = 0;
  pb::AnalyzeResponse response_;
};

}  // namespace

Result<pb::AnalyzeResponse> analyze(Store& store, const std::string& workload,
                                    const AnalyzeOptions& options) {
  return Analysis(store, workload, options).run();
}

}  // namespace baton::storage
