#!/usr/bin/env bash
# The miniature's base model from nothing: image tokenizer, seeing encoder, language model, then its measures.
# About 75 minutes on two cores; every stage resumes when it is run again. DEVICE=cuda uses a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out}
secondlook train tokenizer --config configs/mini/tokenizer.toml --out "$out/tokenizer"
secondlook train vision --config configs/mini/vision.toml --out "$out/vision"
secondlook train base --config configs/mini/base.toml --out "$out/base" \
  --set tokenizer="$out/tokenizer/final" --set vision="$out/vision/final"
secondlook bench geneval --model "$out/base/final" --out "$out/geneval"
secondlook bench questions --model "$out/base/final" --out "$out/questions"
secondlook show "$out/base"
