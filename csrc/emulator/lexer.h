// Splits PTX text into tokens. Comments vanish; every token knows its line.
#pragma once

#include <cctype>
#include <string>
#include <string_view>
#include <vector>

#include "emulator/ptx.h"

namespace fastres::emulator::ptx {

struct Token {
  enum class Kind { Word, Number, String, Punctuation, End };
  Kind kind = Kind::End;
  std::string_view text;
  uint32_t line = 0;
  bool is(std::string_view what) const { return text == what && kind != Kind::String; }
};

inline std::vector<Token> tokenize(std::string_view text) {
  const auto word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
  };
  std::vector<Token> tokens;
  uint32_t line = 1;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '\n') line++;
    if (std::isspace(static_cast<unsigned char>(c)) || c == '\0') {
      i++;
      continue;
    }
    if (text.substr(i, 2) == "//") {
      while (i < text.size() && text[i] != '\n') i++;
      continue;
    }
    if (text.substr(i, 2) == "/*") {
      const size_t end = text.find("*/", i + 2);
      if (end == text.npos) throw PtxError("PTX line " + std::to_string(line) + ": a comment never ends");
      for (; i < end + 2; i++) line += text[i] == '\n';
      continue;
    }
    Token token{Token::Kind::Punctuation, {}, line};
    size_t end = i + 1;
    if (c == '"') {
      while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
      token.kind = Token::Kind::String;
      token.text = text.substr(i + 1, end - i - 1);
      end++;
    } else if (word(c)) {
      // '::' belongs to a word (shared::cta); a single ':' ends a label.
      while (end < text.size() && (word(text[end]) || text.substr(end, 2) == "::")) end += text[end] == ':' ? 2 : 1;
      token.kind = std::isdigit(static_cast<unsigned char>(c)) ? Token::Kind::Number : Token::Kind::Word;
      token.text = text.substr(i, end - i);
    } else {
      token.text = text.substr(i, 1);
    }
    tokens.push_back(token);
    i = end;
  }
  tokens.push_back({Token::Kind::End, "end of text", line});
  return tokens;
}

}  // namespace fastres::emulator::ptx
