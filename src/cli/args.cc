#include "cli/args.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "cli/flags.h"

namespace bantam {

namespace {

std::string normal(std::string name) {
  if (name.starts_with("--")) std::replace(name.begin() + 2, name.end(), '_', '-');
  return name;
}

struct Found {
  const Flag* flag = nullptr;
  bool off = false;  // by a name that says no
};

bool holds(const std::vector<const char*>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Found find_flag(Command command, const std::string& name) {
  for (const Flag& flag : flags()) {
    if ((flag.commands & bit_of(command)) == 0) continue;
    if (holds(flag.names, name)) return {&flag, false};
    if (holds(flag.off_names, name)) return {&flag, true};
  }
  return {};
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
  size_t best_distance = std::min<size_t>(4, (name.size() + 1) / 2);
  for (const Flag& flag : flags()) {
    if ((flag.commands & bit_of(command)) == 0) continue;
    for (const auto* names : {&flag.names, &flag.off_names}) {
      for (const char* known : *names) {
        if (const size_t d = distance(name, known); d < best_distance) {
          best_distance = d;
          best = known;
        }
      }
    }
  }
  return refused("invalid argument: " + name +
                 (best.empty() ? "" : " (did you mean " + best + "?)"));
}

Error in_argument(const std::string& name, const Error& error) {
  return {error.kind, "error while handling argument \"" + name + "\": " + error.message};
}

// "on", "off", or nothing when it is neither.
std::string_view switch_value(std::string_view value) {
  for (const char* yes : {"1", "true", "on", "enabled"}) {
    if (value == yes) return "on";
  }
  for (const char* no : {"0", "false", "off", "disabled"}) {
    if (value == no) return "off";
  }
  return {};
}

Status read_one(const Flag& flag, CliOptions& options) {
  const std::string name = flag.env;
  constexpr std::string_view kPrefix = "LLAMA_ARG_";
  if (flag.is_switch() && name.starts_with(kPrefix)) {
    const std::string negative = "LLAMA_ARG_NO_" + name.substr(kPrefix.size());
    if (std::getenv(negative.c_str()) != nullptr) return flag.set(options, "off");
  }
  const char* value = std::getenv(flag.env);
  if (value == nullptr) return Ok{};
  if (!flag.is_switch()) {
    Status status = flag.set(options, value);
    return status ? status : in_argument(name, status.error());
  }
  const std::string_view on_off = switch_value(value);
  if (on_off.empty()) return in_argument(name, wrong_value(value, "true or false"));
  // Rows without a meaning for "off" do nothing either way.
  Status status = on_off == "off" && flag.off_names.empty() && *flag.help == '\0'
                      ? Status(Ok{})
                      : flag.set(options, on_off);
  return status ? status : in_argument(name, status.error());
}

Status read_environment(CliOptions& options) {
  options.from_environment = true;
  for (const Flag& flag : flags()) {
    if (*flag.env == '\0' || (flag.commands & bit_of(options.command)) == 0) continue;
    if (Status status = read_one(flag, options); !status) return status;
  }
  options.from_environment = false;
  return Ok{};
}

// One flag at args[i]; i moves to its last word.
Status read_flag(CliOptions& options, const std::vector<std::string>& args, size_t& i) {
  std::string name = args[i], value;
  const size_t equals = name.starts_with("--") ? name.find('=') : std::string::npos;
  const bool joined = equals != std::string::npos;
  if (joined) {
    value = name.substr(equals + 1);
    name.resize(equals);
  }
  name = normal(name);
  const Found found = find_flag(options.command, name);
  if (found.flag == nullptr) return unknown_flag(options.command, name);
  if (found.flag->is_switch()) {
    if (joined) return in_argument(name, refused("got the value '" + value + "', expected none"));
    value = found.off ? "off" : "on";
  } else if (!joined) {
    const bool more = i + 1 < args.size();
    if (found.flag->value_is_optional()) {
      if (more && !args[i + 1].starts_with("-")) value = args[++i];
    } else if (!more) {
      return in_argument(
          name, refused("got nothing after it, expected " + std::string(found.flag->value)));
    } else {
      value = args[++i];
    }
  }
  Status status = found.flag->set(options, value);
  return status ? status : in_argument(name, status.error());
}

}  // namespace

Result<CliOptions> parse_args(Command command, const std::vector<std::string>& args) {
  CliOptions options;
  options.command = command;
  // Asked for help, nothing else matters, a wrong environment included.
  for (const std::string& word : args) {
    const Found found = find_flag(command, word);
    if (found.flag == nullptr || (word != "-h" && word != "--help" && word != "--version"))
      continue;
    Status status = found.flag->set(options, "on");
    if (!status) return status.error();
    return options;
  }
  // llama-bench prints its table and nothing else unless asked to.
  if (command == Command::bench) options.log_level = 2;
  if (Status status = read_environment(options); !status) return status.error();
  for (size_t i = 0; i < args.size(); ++i) {
    if (Status status = read_flag(options, args, i); !status) return status.error();
  }
  if (options.progress) options.log_level = std::max(options.log_level, 3);
  return options;
}

Result<std::string> read_text_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  errno = 0;
  // An empty file inserts nothing, which is not an error.
  if (!file || (file.peek() != std::ifstream::traits_type::eof() && !(content << file.rdbuf())) ||
      file.bad()) {
    const std::string why = errno != 0 ? std::strerror(errno) : "it cannot be read";
    return refused("cannot read '" + path + "': " + why);
  }
  return content.str();
}

std::string help_text(Command command) {
  std::string text;
  for (const Flag& flag : flags()) {
    if ((flag.commands & bit_of(command)) == 0 || *flag.help == '\0') continue;
    std::string line = "  ";
    for (const auto* names : {&flag.names, &flag.off_names}) {
      for (const char* name : *names) line += (line.size() > 2 ? ", " : "") + std::string(name);
    }
    if (*flag.value != '\0') line += " " + std::string(flag.value);
    line.resize(std::max<size_t>(line.size() + 1, 42), ' ');
    line += flag.help;
    if (*flag.env != '\0') line += " [" + std::string(flag.env) + "]";
    text += line + "\n";
  }
  return text + "  types of K and V: " + kv_type_list() +
         "\n  BANTAM_ISA=NAME in the environment: an instruction set that --version names\n";
}

Result<std::vector<int>> parse_list(const std::string& name, const std::string& text, int min,
                                    int max) {
  // An empty name: the caller says which flag it is.
  const auto bad = [&] {
    const Error error = wrong_value(text, "numbers from " + std::to_string(min) + " to " +
                                              std::to_string(max) + " as 1,2 or 0-8+4 or 1-8*2");
    return name.empty() ? error : in_argument(name, error);
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
