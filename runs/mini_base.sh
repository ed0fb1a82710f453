#!/usr/bin/env bash
# The miniature's base model from nothing: image tokenizer, seeing encoder, language model, then its measures.
# About an hour and a half on two cores; every stage resumes when it is run again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out}
base="secondlook train base --config configs/mini"
secondlook train tokenizer --config configs/mini/tokenizer.toml --out "$out/tokenizer"
secondlook train vision --config configs/mini/vision.toml --out "$out/vision"
$base/base.toml --out "$out/base" --set tokenizer="$out/tokenizer/final" --set vision="$out/vision/final"
# comparing is learned undiluted, on pictures of one object first: "is there …?", then verdicts, then both on all pictures
$base/base_compare.toml --out "$out/base_there" --set start="$out/base/final"
$base/base_compare.toml --out "$out/base_verdict" --set start="$out/base_there/final" --set 'asked={verdict = 0.8, there = 0.2}'
$base/base_compare.toml --out "$out/base_both" --set start="$out/base_verdict/final" --set 'asked={verdict = 0.7, there = 0.3}' \
  --set alone=0.2 --set steps=600
$base/base_see.toml --out "$out/base_see" --set start="$out/base_both/final"
secondlook bench geneval --model "$out/base_see/final" --out "$out/geneval"
secondlook bench questions --model "$out/base_see/final" --out "$out/questions"
secondlook show "$out/base_see"
