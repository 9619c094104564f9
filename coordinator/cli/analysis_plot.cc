// The drawing of an analysis as SVG. Colours are told apart in grey too, and each has its word.
#include <algorithm>
#include <cstdio>

#include "coordinator/cli/render_store.h"

namespace baton::cli {
namespace {

constexpr double kLeft = 70, kTop = 40, kWidth = 760, kHeight = 240, kGap = 90;
constexpr int kTicks = 4;

struct Part {
  const char* word;
  const char* colour;
  std::uint64_t value;
};

std::string escape(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string rectangle(double x, double y, double width, double height, const char* colour, const std::string& title) {
  char text[256];
  std::snprintf(text, sizeof text, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\">", x, y,
                std::max(width, 0.3), height, colour);
  return text + ("<title>" + escape(title) + "</title></rect>\n");
}

std::string words(double x, double y, const std::string& text, const char* anchor = "start") {
  char head[128];
  std::snprintf(head, sizeof head, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
  return head + escape(text) + "</text>\n";
}

std::vector<Part> parts_of(const pb::AnalyzeCounts& c) {
  return {{"zero", "#cccccc", c.zero()},
          {"repeats this checkpoint", "#80b1d3", c.intra()},
          {"repeats an earlier one", "#377eb8", c.inter()},
          {"new", "#d95f02", c.fresh()}};
}

std::string axis(double top, std::uint64_t most, const std::string& unit) {
  std::string out;
  for (int i = 0; i <= kTicks; ++i) {
    const double y = top + kHeight - kHeight * i / kTicks;
    char line[160];
    std::snprintf(line, sizeof line, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#dddddd\"/>\n", kLeft,
                  kLeft + kWidth, y, y);
    out += line;
    out += words(kLeft - 6, y + 4, std::to_string(most * static_cast<std::uint64_t>(i) / kTicks), "end");
  }
  return out + words(kLeft, top - 8, unit);
}

std::string legend(double y, const std::vector<Part>& parts) {
  std::string out;
  double x = kLeft;
  for (const Part& p : parts) {
    out += rectangle(x, y - 9, 10, 10, p.colour, p.word) + words(x + 14, y, p.word);
    x += 190;
  }
  return out;
}

}  // namespace

std::string analysis_svg(const pb::AnalyzeResponse& r) {
  const double second = kTop + kHeight + kGap;
  char head[200];
  std::snprintf(head, sizeof head,
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
                "font-size=\"12\">\n",
                kLeft + kWidth + 30, second + kHeight + 70);
  std::string out = head;
  out += "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  out += words(kLeft, 16, "Pages written by each checkpoint of " + r.name());

  std::uint64_t most = 1;
  for (const auto& c : r.checkpoints()) most = std::max(most, c.counts().written());
  out += axis(kTop, most, "pages");
  const double step = kWidth / std::max(1, r.checkpoints_size());
  for (int i = 0; i < r.checkpoints_size(); ++i) {
    const auto& c = r.checkpoints(i);
    double y = kTop + kHeight;
    for (const Part& p : parts_of(c.counts())) {
      const double height = kHeight * static_cast<double>(p.value) / static_cast<double>(most);
      y -= height;
      if (p.value != 0) {
        out += rectangle(kLeft + step * i, y, step * 0.85, height, p.colour,
                         r.name() + "@" + std::to_string(c.seq()) + ": " + std::to_string(p.value) + " " + p.word);
      }
    }
  }
  if (r.checkpoints_size() > 0) {
    out += words(kLeft, kTop + kHeight + 16, "@" + std::to_string(r.checkpoints(0).seq()));
    out += words(kLeft + kWidth, kTop + kHeight + 16,
                 "@" + std::to_string(r.checkpoints(r.checkpoints_size() - 1).seq()), "end");
  }
  out += legend(kTop + kHeight + 36, parts_of(r.sum()));

  const auto& s = r.sum();
  const std::uint64_t all = std::max<std::uint64_t>(s.written() * 4096, 1);
  const std::uint64_t no_zero = all - std::min(all, s.zero_bytes());
  const std::uint64_t no_intra = no_zero - std::min(no_zero, s.intra_bytes());
  const std::uint64_t no_inter = no_intra - std::min(no_intra, s.inter_bytes());
  const std::uint64_t packed = no_inter - std::min(no_inter, s.zstd_bytes());
  const Part bars[] = {{"written", "#666666", all},
                       {"without zero pages", "#cccccc", no_zero},
                       {"without repeats within", "#80b1d3", no_intra},
                       {"without repeats of earlier", "#377eb8", no_inter},
                       {"compressed", "#d95f02", packed},
                       {"as deltas", "#7f3b08", packed - std::min(packed, s.delta_bytes())}};
  out += axis(second, all / 1024, "KiB left");
  const double wide = kWidth / 6;
  for (int i = 0; i < 6; ++i) {
    const double height = kHeight * static_cast<double>(bars[i].value) / static_cast<double>(all);
    out += rectangle(kLeft + wide * i + 10, second + kHeight - height, wide - 20, height, bars[i].colour,
                     std::string(bars[i].word) + ": " + std::to_string(bars[i].value) + " bytes");
    out += words(kLeft + wide * i + wide / 2, second + kHeight + 16, bars[i].word, "middle");
  }
  return out + "</svg>\n";
}

}  // namespace baton::cli
