#include "coordinator/http/metrics.h"

#include <list>
#include <vector>

#include <prometheus/text_serializer.h>

namespace baton::coordinator::http {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

const prometheus::Histogram::BucketBoundaries kBuckets = {0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10};
constexpr const char* kStates[] = {"starting", "running", "migrating", "frozen",
                                   "exited",   "lost",    "failed",    "stopped"};
constexpr const char* kNodeStates[] = {"ready", "unreachable", "drained"};
constexpr double kMicro = 1e-6;

class Families {
 public:
  MetricFamily& add(const std::string& name, const std::string& help, MetricType type) {
    families_.push_back({name, help, type, {}});
    return families_.back();
  }
  std::vector<MetricFamily> take() { return {families_.begin(), families_.end()}; }

 private:
  std::list<MetricFamily> families_;  // references stay good
};

void put(MetricFamily& family, Labels labels, double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  if (family.type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(std::move(metric));
}

void nodes(Families& out, const Picture& picture) {
  auto& state = out.add("baton_node_state", "1 for the state the node is in", MetricType::Gauge);
  auto& memory = out.add("baton_node_memory_bytes", "memory of the node", MetricType::Gauge);
  auto& free = out.add("baton_node_memory_free_bytes", "free memory", MetricType::Gauge);
  auto& disk = out.add("baton_node_disk_free_bytes", "free space of its store's disk", MetricType::Gauge);
  auto& store = out.add("baton_node_store_bytes", "size of its page store", MetricType::Gauge);
  auto& seen = out.add("baton_node_last_seen_seconds", "time since its last report", MetricType::Gauge);
  for (const auto& node : picture.nodes.nodes()) {
    const Labels labels = {{"node", node.name()}};
    for (const char* name : kNodeStates) {
      put(state, {{"node", node.name()}, {"state", name}}, node.state() == name);
    }
    put(memory, labels, static_cast<double>(node.facts().memory_bytes()));
    put(free, labels, static_cast<double>(node.facts().memory_free_bytes()));
    put(disk, labels, static_cast<double>(node.facts().disk_free_bytes()));
    put(store, labels, static_cast<double>(node.facts().store_bytes()));
    put(seen, labels, static_cast<double>(node.last_seen_us_ago()) * kMicro);
  }
}

void workloads(Families& out, const Picture& picture) {
  const auto gauge = [&](const char* name, const char* help) -> MetricFamily& {
    return out.add(name, help, MetricType::Gauge);
  };
  const auto counter = [&](const char* name, const char* help) -> MetricFamily& {
    return out.add(name, help, MetricType::Counter);
  };
  auto& state = gauge("baton_workload_state", "1 for the state the workload is in");
  auto& risk = gauge("baton_workload_risk_level", "0 none, 1 watch, 2 high, 3 lost");
  auto& stale = gauge("baton_workload_stale", "1 when its node does not answer");
  auto& lag = gauge("baton_workload_lag_seconds", "what a failover would lose, as last reported");
  auto& target = gauge("baton_workload_lag_target_seconds", "the lag that its spec accepts");
  auto& pause = gauge("baton_workload_pause_seconds", "pause of the last 1,000 checkpoints");
  auto& incarnation = gauge("baton_workload_incarnation", "number of the present owner");
  auto& committed = gauge("baton_workload_last_committed_seq", "newest committed checkpoint");
  auto& memory = gauge("baton_workload_memory_bytes", "memory of its processes");
  auto& wanted = gauge("baton_workload_standbys", "standbys that it has");
  auto& connected = gauge("baton_workload_standbys_connected", "of them, those connected");
  auto& written = counter("baton_workload_pages_written_total", "pages written");
  auto& known = counter("baton_workload_pages_known_total", "of them, known to the standby");
  auto& zero = counter("baton_workload_pages_zero_total", "of them, zero");
  auto& sent = counter("baton_workload_pages_sent_total", "of them, sent");
  auto& bytes = counter("baton_workload_sent_bytes_total", "bytes sent to standbys");
  for (const auto& row : picture.rows) {
    const auto& status = row.info.status();
    const std::string& name = row.info.spec().name();
    const Labels labels = {{"workload", name}};
    for (const char* one : kStates) {
      put(state, {{"workload", name}, {"state", one}}, status.state() == one);
    }
    put(risk, labels, static_cast<double>(row.risk.level));
    put(stale, labels, row.info.status_is_stale());
    put(lag, labels, static_cast<double>(status.lag_us()) * kMicro);
    put(target, labels, static_cast<double>(row.lag_target_us) * kMicro);
    put(pause, {{"workload", name}, {"quantile", "0.5"}}, static_cast<double>(status.pause().p50_us()) * kMicro);
    put(pause, {{"workload", name}, {"quantile", "0.99"}}, static_cast<double>(status.pause().p99_us()) * kMicro);
    put(pause, {{"workload", name}, {"quantile", "1"}}, static_cast<double>(status.pause().max_us()) * kMicro);
    put(incarnation, labels, static_cast<double>(row.info.ownership().incarnation()));
    put(committed, labels, static_cast<double>(status.last_committed()));
    put(memory, labels, static_cast<double>(status.memory_bytes()));
    put(wanted, labels, row.info.spec().standbys_size());
    double there = 0;
    for (const auto& standby : status.standbys()) there += standby.connected();
    put(connected, labels, there);
    put(written, labels, static_cast<double>(status.pages_written()));
    put(known, labels, static_cast<double>(status.pages_known()));
    put(zero, labels, static_cast<double>(status.pages_zero()));
    put(sent, labels, static_cast<double>(status.pages_sent()));
    put(bytes, labels, static_cast<double>(status.bytes_sent()));
  }
}

}  // namespace

Metrics::Metrics(const pb::VersionInfo& version)
    : requests_(prometheus::BuildCounter()
                    .Name("baton_http_requests_total")
                    .Help("requests answered, by route and status class")
                    .Register(registry_)),
      seconds_(prometheus::BuildHistogram()
                   .Name("baton_http_request_seconds")
                   .Help("time to answer, by route")
                   .Register(registry_)),
      connections_(prometheus::BuildGauge()
                       .Name("baton_http_connections")
                       .Help("open connections")
                       .Register(registry_)
                       .Add({})),
      listeners_(prometheus::BuildGauge()
                     .Name("baton_http_event_streams")
                     .Help("open event streams")
                     .Register(registry_)
                     .Add({})),
      refused_(prometheus::BuildCounter()
                   .Name("baton_http_connections_refused_total")
                   .Help("connections closed at once because there were too many")
                   .Register(registry_)
                   .Add({})) {
  prometheus::BuildGauge()
      .Name("baton_build_info")
      .Help("1; the version of the coordinator")
      .Register(registry_)
      .Add({{"version", version.version()}, {"commit", version.commit()}, {"cluster", version.cluster()}})
      .Set(1);
}

void Metrics::answered(const std::string& route, int status, double seconds) {
  requests_.Add({{"route", route}, {"status", std::to_string(status / 100) + "xx"}}).Increment();
  seconds_.Add({{"route", route}}, kBuckets).Observe(seconds);
}

void Metrics::connections(int now) { connections_.Set(now); }
void Metrics::listeners(int now) { listeners_.Set(now); }
void Metrics::refused_connection() { refused_.Increment(); }

std::string Metrics::text(const Picture& picture, double picture_age_s) {
  Families families;
  put(families.add("baton_picture_age_seconds", "time since the coordinator last looked at its own state", MetricType::Gauge),
      {}, picture_age_s);
  nodes(families, picture);
  workloads(families, picture);
  std::vector<MetricFamily> all = registry_.Collect();
  for (auto& family : families.take()) {
    if (!family.metric.empty()) all.push_back(std::move(family));
  }
  return prometheus::TextSerializer().Serialize(all);
}

}  // namespace baton::coordinator::http
