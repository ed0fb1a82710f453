#!/usr/bin/env bash
# The miniature's base model from nothing: image tokenizer, seeing encoder, language model, then its measures.
# About two hours on two cores; every stage resumes when it is run again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out}
secondlook train tokenizer --config configs/mini/tokenizer.toml --out "$out/tokenizer"
secondlook train vision --config configs/mini/vision.toml --out "$out/vision"
secondlook train base --config configs/mini/base.toml --out "$out/base" \
  --set tokenizer="$out/tokenizer/final" --set vision="$out/vision/final"
secondlook train base --config configs/mini/base_compare.toml --out "$out/base_alone" --set start="$out/base/final"
secondlook train base --config configs/mini/base_compare.toml --out "$out/base_compare" --set start="$out/base_alone/final" \
  --set alone=0.3 --set steps=800
secondlook train base --config configs/mini/base_see.toml --out "$out/base_see" --set start="$out/base_compare/final"
secondlook bench geneval --model "$out/base_see/final" --out "$out/geneval"
secondlook bench questions --model "$out/base_see/final" --out "$out/questions"
secondlook show "$out/base_see"
