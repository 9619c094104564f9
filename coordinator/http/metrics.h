// Metrics: the cluster's figures in Prometheus' text format. Names begin with baton_, units
// are base units, labels are bounded by the number of nodes and workloads and by fixed sets.
// docs/metrics.md lists them. Threads: any.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "coordinator/observe/observatory.h"

namespace baton::coordinator::http {

class Metrics {
 public:
  explicit Metrics(const pb::VersionInfo& version);

  // One answered request. `route` is the pattern of the roles table, or "other".
  void answered(const std::string& route, int status, double seconds);
  void connections(int now);
  void listeners(int now);
  void refused_connection();

  std::string text(const Picture& picture, double picture_age_s);

 private:
  prometheus::Registry registry_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Histogram>& seconds_;
  prometheus::Gauge& connections_;
  prometheus::Gauge& listeners_;
  prometheus::Counter& refused_;
};

}  // namespace baton::coordinator::http
