#include "server/slots.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "base/log.h"
#include "server/fields.h"
#include "server/generation.h"

namespace bantam {

namespace {

constexpr std::string_view kPrefix = "/slots/";
constexpr size_t kMaxSlotBody = 64 << 10;
constexpr size_t kMaxName = 200;  // leaves room for what a writer appends while it writes

Result<int> slot_of(std::string_view path) {
  path.remove_prefix(kPrefix.size());
  int slot = -1;
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), slot);
  if (error != std::errc() || end != path.data() + path.size() || path[0] == '-') {
    return refused("slot is '" + std::string(path.substr(0, 20)) +
                   "', expected a number in the path: POST /slots/0?action=save");
  }
  return slot;
}

struct Action {
  const char* name;
  SlotAction action;
  const char *n_tokens, *n_bytes, *ms;  // keys of the answer
};

constexpr Action kActions[] = {
    {"save", SlotAction::save, "n_saved", "n_written", "save_ms"},
    {"restore", SlotAction::restore, "n_restored", "n_read", "restore_ms"},
    {"erase", SlotAction::erase, "n_erased", nullptr, nullptr},
};

Result<const Action*> action_of(std::string_view query) {
  for (const Action& row : kActions) {
    const std::string wanted = std::string("action=") + row.name;
    for (size_t at = 0; at < query.size();) {
      const size_t end = std::min(query.find('&', at), query.size());
      if (query.substr(at, end - at) == wanted) return &row;
      at = end + 1;
    }
  }
  return refused("got '" + std::string(query.substr(0, 40)) +
                 "', expected ?action= with save, restore or erase");
}

Result<std::string> file_of(const std::string& body) {
  const Result<Json> json = parse_json(body);
  if (!json) return json.error();
  Fields fields(*json);
  std::string name = fields.text("filename", "");
  if (!fields.ok()) return fields.error();
  if (Status status = check_slot_file(name); !status) return status.error();
  return name;
}

Json answer(const Action& action, const SlotDone& done, const std::string& name) {
  Json out = {{"id_slot", done.slot}, {action.n_tokens, done.n_tokens}};
  if (action.action == SlotAction::erase) return out;
  out["filename"] = name;
  out[action.n_bytes] = done.n_bytes;
  out["timings"] = {{action.ms, done.ms}};
  return out;
}

// What a client may see of it: the name that it gave, not where the server keeps such files.
Error without_folder(Error error, const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  for (size_t at = error.message.find(path); at != std::string::npos;
       at = error.message.find(path, at + name.size())) {
    error.message.erase(at, path.size() - name.size());
  }
  return error;
}

}  // namespace

Status check_slot_file(const std::string& name) {
  const auto fits = [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f && c != '/' && c != '\\' && c != ':';
  };
  const bool plain = !name.empty() && name.size() <= kMaxName && name[0] != '.' &&
                     std::all_of(name.begin(), name.end(), fits) && !name.ends_with(".unfinished");
  if (plain) return Ok{};
  return refused("'filename' is '" + name.substr(0, 80) +
                 "', expected a bare file name of at most " + std::to_string(kMaxName) +
                 " bytes, without / \\ : and not starting with a dot");
}

void change_slot(Engine& engine, const std::string& folder, const HttpRequest& request,
                 std::shared_ptr<Exchange> exchange) {
  const Result<int> slot = slot_of(request.path);
  if (!slot) return exchange->reply(error_reply(slot.error()));
  const Result<const Action*> action = action_of(request.query);
  if (!action) return exchange->reply(error_reply(action.error()));
  std::string name;
  if ((*action)->action != SlotAction::erase) {
    Result<std::string> file = file_of(request.body);
    if (!file) return exchange->reply(error_reply(file.error()));
    name = std::move(*file);
  }
  // A connection holds its request until the answer is sent.
  if (request.body.size() > kMaxSlotBody) {
    return exchange->reply(error_reply(refused(
        "the body has " + std::to_string(request.body.size()) + " bytes, expected at most " +
        std::to_string(kMaxSlotBody) + " with a \"filename\"")));
  }
  const auto given_up = std::make_shared<std::atomic<bool>>(false);
  exchange->on_close([given_up] { given_up->store(true); });
  const auto sink = [exchange, name, folder, id = *slot,
                     row = *action](const Result<SlotDone>& done) {
    // Whoever left is not told that the slot may be empty now.
    const bool logged =
        !done &&
        (done.error().kind == ErrorKind::failed ||
         (done.error().kind == ErrorKind::cancelled && row->action == SlotAction::restore));
    if (logged) log_warn("slots: {} of slot {}: {}", row->name, id, done.error().message);
    exchange->post([exchange, name, folder, row, done] {
      if (!exchange->open()) return;
      exchange->reply(done ? json_reply(answer(*row, *done, name))
                           : error_reply(without_folder(done.error(), folder, name)));
    });
  };
  const Status status = engine.change_slot((*action)->action, *slot, folder + "/" + name, sink,
                                           [given_up] { return given_up->load(); });
  if (!status) exchange->reply(error_reply(status.error()));
}

}  // namespace bantam
