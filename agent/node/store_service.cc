#include "agent/node/store_service.h"

#include <atomic>
#include <vector>

#include "agent/node/store_healer.h"
#include "base/log.h"
#include "storage/analysis.h"
#include "storage/comparison.h"
#include "storage/core_file.h"
#include "transport/rpc.h"

namespace baton::node {
namespace {

using transport::Role;
using transport::to_status;

constexpr int kMaxReported = 1'000;           // damaged pages told one by one
constexpr std::size_t kExportChunkBytes = 1u << 20;

// Counts a long call for the length of a scope, if there is room for it.
class LongCall {
 public:
  explicit LongCall(std::atomic<int>& count) : count_(count), taken_(count.fetch_add(1) < kMaxLongCalls) {}
  ~LongCall() { count_.fetch_sub(1); }
  LongCall(const LongCall&) = delete;
  LongCall& operator=(const LongCall&) = delete;
  Result<void> ok(const std::string& node) const {
    if (taken_) return {};
    return make_error(Code::kConflict, "store", node + " is busy with other such requests", "Try again later.");
  }

 private:
  std::atomic<int>& count_;
  const bool taken_;
};

class StoreService final : public pb::Store::Service {
 public:
  explicit StoreService(StoreServiceOptions options) : options_(std::move(options)), store_(*options_.store) {}

  grpc::Status StoreStat(grpc::ServerContext* context, const pb::StoreRequest*,
                         pb::StoreStatResponse* response) override {
    return answer(*context, "StoreStat", [&]() -> Result<void> {
      fill_stat(*response->add_nodes());
      return {};
    });
  }

  grpc::Status StoreGc(grpc::ServerContext* context, const pb::StoreRequest*,
                       pb::StoreGcResponse* response) override {
    return answer(*context, "StoreGc", [&]() -> Result<void> {
      BATON_TRY(store_.maintain());
      BATON_ASSIGN(auto result, store_.gc());
      auto* out = response->add_nodes();
      out->set_node(options_.node);
      out->set_pages_removed(result.pages_removed);
      out->set_bytes_freed(result.bytes_freed);
      out->set_segments_removed(result.segments_removed);
      out->set_segments_rewritten(result.segments_rewritten);
      return {};
    });
  }

  grpc::Status StoreVerify(grpc::ServerContext* context, const pb::StoreVerifyRequest* request,
                           grpc::ServerWriter<pb::StoreVerifyProgress>* writer) override {
    return answer(*context, "StoreVerify", [&]() -> Result<void> {
      const LongCall call(long_calls_);
      BATON_TRY(call.ok(options_.node));
      return verify(*request, *writer);
    });
  }

  grpc::Status TagCheckpoint(grpc::ServerContext* context, const pb::TagCheckpointRequest* request,
                             pb::CheckpointMarks* response) override {
    return answer(*context, "TagCheckpoint", [&]() -> Result<void> {
      std::uint64_t seq = request->seq();
      if (seq == 0) {
        BATON_ASSIGN(auto tip, store_.tip(request->name()));
        if (!tip) return make_error(Code::kNotFound, "tag", request->name() + " has no checkpoint here");
        seq = tip->seq;
      }
      storage::MarkChange change;
      change.add.assign(request->add().begin(), request->add().end());
      change.remove.assign(request->remove().begin(), request->remove().end());
      if (request->pin() || request->unpin()) change.pin = request->pin();
      BATON_ASSIGN(auto info, store_.mark(request->name(), seq, change));
      fill_marks(*response, info);
      return {};
    });
  }

  grpc::Status ListMarks(grpc::ServerContext* context, const pb::WorkloadName* request,
                         pb::ListMarksResponse* response) override {
    return answer(*context, "ListMarks", [&]() -> Result<void> {
      auto list = store_.list(request->name());
      if (!list && list.error().code != Code::kNotFound) return list.error();
      if (!list) return {};
      for (const auto& info : *list) {
        if (info.marked()) fill_marks(*response->add_marks(), info);
      }
      return {};
    });
  }

  grpc::Status Analyze(grpc::ServerContext* context, const pb::AnalyzeRequest* request,
                       pb::AnalyzeResponse* response) override {
    return answer(*context, "Analyze", [&]() -> Result<void> {
      const LongCall call(long_calls_);
      BATON_TRY(call.ok(options_.node));
      storage::AnalyzeOptions options;
      options.first_seq = request->first_seq();
      options.last_seq = request->last_seq();
      if (request->sample_pages() != 0) options.sample_pages = request->sample_pages();
      BATON_ASSIGN(*response, storage::analyze(store_, request->name(), options));
      response->set_node(options_.node);
      return {};
    });
  }

  grpc::Status Diff(grpc::ServerContext* context, const pb::DiffRequest* request,
                    grpc::ServerWriter<pb::DiffPart>* writer) override {
    return answer(*context, "Diff", [&]() -> Result<void> {
      const LongCall call(long_calls_);
      BATON_TRY(call.ok(options_.node));
      storage::CompareOptions options;
      options.max_pages = request->max_pages();
      options.content = request->content();
      auto sink = [&](const pb::DiffPart& part) {
        if (!part.has_summary()) return writer->Write(part);
        pb::DiffPart last = part;
        last.mutable_summary()->set_node(options_.node);
        return writer->Write(last);
      };
      return storage::compare(store_, {request->name_a(), request->seq_a()},
                              {request->name_b(), request->seq_b()}, options, sink);
    });
  }

  grpc::Status Export(grpc::ServerContext* context, const pb::ExportRequest* request,
                      grpc::ServerWriter<pb::ExportChunk>* writer) override {
    return answer(*context, "Export", [&]() -> Result<void> {
      const LongCall call(long_calls_);
      BATON_TRY(call.ok(options_.node));
      std::uint64_t seq = request->seq();
      if (seq == 0) {
        BATON_ASSIGN(auto tip, store_.tip(request->name()));
        if (!tip) return make_error(Code::kNotFound, "export", request->name() + " has no checkpoint here");
        seq = tip->seq;
      }
      auto put = [&](std::uint64_t offset, std::span<const std::byte> bytes) -> Result<void> {
        for (std::size_t at = 0; at < bytes.size(); at += kExportChunkBytes) {
          const auto piece = bytes.subspan(at, std::min(kExportChunkBytes, bytes.size() - at));
          pb::ExportChunk chunk;
          chunk.set_offset(offset + at);
          chunk.set_data(piece.data(), piece.size());
          if (!writer->Write(chunk)) return make_error(Code::kCancelled, "export", "nobody listens any more");
        }
        return {};
      };
      BATON_ASSIGN(auto summary, storage::write_core(store_, request->name(), seq, request->pid(), put));
      pb::ExportChunk last;
      last.set_file_bytes(summary.file_bytes);
      last.set_note(request->name() + "@" + std::to_string(seq) + ": process " + std::to_string(summary.pid) + " " +
                    summary.command + ", " + std::to_string(summary.threads) + " threads, " +
                    std::to_string(summary.mappings) + " mappings, " + std::to_string(summary.pages) + " pages");
      (void)writer->Write(last);
      return {};
    });
  }

 private:
  template <typename Body>
  grpc::Status answer(grpc::ServerContext& context, const char* rpc, Body&& body) {
    if (auto who = transport::require_role(context, rpc, {Role::kCoordinator}); !who) {
      return to_status(who.error());
    }
    return to_status(body());
  }

  void fill_marks(pb::CheckpointMarks& out, const storage::CheckpointInfo& info) const {
    out.set_workload(info.workload);
    out.set_seq(info.seq);
    out.set_incarnation(info.incarnation);
    out.set_pinned(info.pinned);
    for (const auto& tag : info.tags) out.add_tags(tag);
    out.add_nodes(options_.node);
  }

  void fill_stat(pb::StoreStat& out) {
    const auto stats = store_.stats();
    out.set_node(options_.node);
    out.set_problem(store_.problem());
    out.set_workloads(stats.workloads);
    out.set_checkpoints(stats.checkpoints);
    out.set_pages(stats.pages.pages);
    out.set_bytes(stats.pages.bytes);
    out.set_log_bytes(stats.log_bytes);
    out.set_garbage_pages(stats.pages.dead_pages);
    out.set_segments(stats.pages.segments);
    out.set_put_new(stats.pages.put_new);
    out.set_put_known(stats.pages.put_known);
    out.set_commits(stats.commits);
    out.set_collections(stats.collections);
    out.set_compactions(stats.compactions);
    out.set_damaged_frames(stats.pages.damaged_frames);
    out.set_damaged_records(stats.damaged_records);
    out.set_rolled_back(stats.rolled_back);
    out.set_budget_bytes(options_.budget_bytes);
    out.set_disk_free_bytes(stats.disk_free_bytes);
    out.set_index_bytes(stats.pages.index_bytes);
    out.set_in_memory(stats.in_memory);
    out.set_encrypted(stats.encrypted);
    out.set_shed(stats.shed);
    for (const auto& name : store_.workloads()) {
      auto list = store_.list(name);
      if (!list) continue;
      auto* held = out.add_held();
      held->set_name(name);
      held->set_checkpoints(list->size());
      for (const auto& info : *list) {
        held->set_tagged(held->tagged() + info.marked());
        held->set_damaged(held->damaged() + (info.missing_pages != 0));
      }
      if (list->empty()) continue;
      held->set_oldest(list->front().seq);
      held->set_newest(list->back().seq);
    }
  }

  Result<void> verify(const pb::StoreVerifyRequest& request, grpc::ServerWriter<pb::StoreVerifyProgress>& writer) {
    storage::VerifyOptions options;
    if (request.parts() != 0) {
      options.part = request.part();
      options.parts = request.parts();
    }
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
      pb::StoreVerifyProgress progress;
      progress.set_node(options_.node);
      progress.set_pages_done(done);
      progress.set_pages_total(total);
      (void)writer.Write(progress);
    };
    BATON_ASSIGN(auto found, store_.verify(options));
    pb::StoreVerifyProgress last;
    last.set_node(options_.node);
    last.set_pages_done(found.pages_checked);
    last.set_pages_total(found.pages_checked);
    auto& report = *last.mutable_report();
    report.set_node(options_.node);
    report.set_pages_checked(found.pages_checked);
    report.set_checkpoints_checked(found.checkpoints_checked);
    report.set_damaged_pages(found.bad.size());
    for (const auto& bad : found.bad) {
      if (report.damaged_size() == kMaxReported) break;
      auto* page = report.add_damaged();
      page->set_digest(bad.page.digest.to_hex(bad.page.digest.is_narrow() ? dedup::DigestKind::kXxh3_128
                                                                          : dedup::DigestKind::kSha256));
      page->set_reason(bad.page.reason);
      for (const auto& name : bad.checkpoints) page->add_checkpoints(name);
    }
    for (const auto& bad : found.bad_manifests) {
      auto* manifest = report.add_manifests();
      manifest->set_checkpoint(bad.workload + "@" + std::to_string(bad.seq));
      manifest->set_reason(bad.reason);
    }
    if (!request.report_only() && options_.tls && (!found.bad.empty() || !found.bad_manifests.empty())) {
      heal(store_, *options_.tls, {request.replicas().begin(), request.replicas().end()}, found, report);
    }
    (void)writer.Write(last);
    return {};
  }

  const StoreServiceOptions options_;
  storage::Store& store_;
  std::atomic<int> long_calls_{0};
};

}  // namespace

std::unique_ptr<grpc::Service> make_store_service(StoreServiceOptions options) {
  return std::make_unique<StoreService>(std::move(options));
}

}  // namespace baton::node
