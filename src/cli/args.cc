#include "cli/args.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "cli/flags.h"

namespace bantam {

namespace {

std::string normal(std::string name) {
  if (name.starts_with("--")) std::replace(name.begin() + 2, name.end(), '_', '-');
  return name;
}

const Flag* find_flag(Command command, const std::string& name) {
  for (const Flag& flag : flags()) {
    if ((flag.commands & bit_of(command)) == 0) continue;
    for (const char* known : flag.names) {
      if (name == known) return &flag;
    }
  }
  return nullptr;
}

size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t corner = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, corner + (a[i - 1] != b[j - 1] ? 1 : 0)});
      corner = above;
    }
  }
  return row.back();
}

Error unknown_flag(Command command, const std::string& name) {
  std::string best;
  size_t best_distance = 4;
  for (const Flag& flag : flags()) {
    if ((flag.commands & bit_of(command)) == 0) continue;
    for (const char* known : flag.names) {
      if (const size_t d = distance(name, known); d < best_distance) {
        best_distance = d;
        best = known;
      }
    }
  }
  return refused("invalid argument: " + name +
                 (best.empty() ? "" : " (did you mean " + best + "?)"));
}

Error in_argument(const std::string& name, const Error& error) {
  return {error.kind, "error while handling argument \"" + name + "\": " + error.message};
}

bool truthy(std::string_view value) {
  return value == "1" || value == "true" || value == "on" || value == "enabled";
}

Status read_environment(CliOptions& options) {
  for (const Flag& flag : flags()) {
    if (*flag.env == '\0' || (flag.commands & bit_of(options.command)) == 0) continue;
    const char* value = std::getenv(flag.env);
    if (value == nullptr || (*flag.value == '\0' && !truthy(value))) continue;
    if (Status status = flag.set(options, value); !status)
      return in_argument(flag.env, status.error());
  }
  return Ok{};
}

}  // namespace

Result<CliOptions> parse_args(Command command, const std::vector<std::string>& args) {
  CliOptions options;
  options.command = command;
  if (command == Command::bench) options.engine.n_batch = 2048;
  if (Status status = read_environment(options); !status) return status.error();
  for (size_t i = 0; i < args.size(); ++i) {
    std::string name = args[i], value;
    const size_t equals = name.starts_with("--") ? name.find('=') : std::string::npos;
    const bool joined = equals != std::string::npos;
    if (joined) {
      value = name.substr(equals + 1);
      name.resize(equals);
    }
    name = normal(name);
    const Flag* flag = find_flag(command, name);
    if (flag == nullptr) return unknown_flag(command, name);
    const bool takes_value = *flag->value != '\0';
    if (joined && !takes_value) {
      return in_argument(name, refused("it takes no value, got '" + value + "'"));
    }
    if (takes_value && !joined) {
      if (i + 1 >= args.size()) return in_argument(name, refused("expected a value after it"));
      value = args[++i];
    }
    if (Status status = flag->set(options, value); !status)
      return in_argument(name, status.error());
  }
  return options;
}

std::string help_text(Command command) {
  std::string text;
  for (const Flag& flag : flags()) {
    if ((flag.commands & bit_of(command)) == 0 || *flag.help == '\0') continue;
    std::string line = "  ";
    for (const char* name : flag.names) line += (line.size() > 2 ? ", " : "") + std::string(name);
    if (*flag.value != '\0') line += " " + std::string(flag.value);
    line.resize(std::max<size_t>(line.size() + 1, 42), ' ');
    line += flag.help;
    if (*flag.env != '\0') line += " [" + std::string(flag.env) + "]";
    text += line + "\n";
  }
  return text + "  types of K and V: " + kv_type_list() + "\n";
}

Result<std::vector<int>> parse_list(const std::string& name, const std::string& text, int min,
                                    int max) {
  const auto bad = [&] {
    return in_argument(
        name, refused("got '" + text + "', expected numbers from " + std::to_string(min) + " to " +
                      std::to_string(max) + " as 1,2 or 0-8+4 or 1-8*2"));
  };
  std::vector<int> out;
  size_t at = 0;
  const auto number = [&](int& value) {
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), value);
    if (error != std::errc() || value < 0) return false;
    at = static_cast<size_t>(end - text.data());
    return true;
  };
  while (at <= text.size()) {
    int first = 0, last = 0, step = 1;
    bool multiply = false;
    if (!number(first)) return bad();
    last = first;
    if (at < text.size() && text[at] == '-') {
      ++at;
      if (!number(last)) return bad();
      if (at < text.size() && (text[at] == '+' || text[at] == '*')) {
        multiply = text[at++] == '*';
        if (!number(step) || step < (multiply ? 2 : 1)) return bad();
      }
    }
    for (int64_t v = first; v <= last && out.size() < 1000; v = multiply ? v * step : v + step) {
      if (v < min || v > max) return bad();
      out.push_back(static_cast<int>(v));
      if (multiply && v == 0) return bad();
    }
    if (at == text.size()) break;
    if (text[at++] != ',') return bad();
  }
  return out.empty() ? Result<std::vector<int>>(bad()) : Result<std::vector<int>>(std::move(out));
}

}  // namespace bantam
