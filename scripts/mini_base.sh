#!/usr/bin/env bash
# The miniature's base model from nothing: image tokenizer, seeing encoder, language model, then its measures.
# About two hours on two cores (DEVICE=cuda trains on a GPU); every stage resumes when it is run again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out} device=${DEVICE:-cpu}
train() { secondlook train "$1" --config "mini/$2" --out "$out/$3" --set "runtime.device=$device" "${@:4}"; }
train tokenizer tokenizer tokenizer
train vision vision vision
train base base base --set tokenizer="$out/tokenizer/final" --set vision="$out/vision/final"
# comparing is learned undiluted, on pictures of one object first: "is there …?", then verdicts, then both on all pictures
train base base_compare base_there --set start="$out/base/final"
train base base_compare base_verdict --set start="$out/base_there/final" --set 'question_weights={verdict = 0.8, there = 0.2}'
train base base_compare base_both --set start="$out/base_verdict/final" --set 'question_weights={verdict = 0.7, there = 0.3}' \
  --set alone=0.2 --set steps=600
# and so are relations, on few objects first
train base base_relations base_few --set start="$out/base_both/final"
train base base_relations base_some --set start="$out/base_few/final" --set objects=8 --set steps=300
train base base_relations base_relations --set start="$out/base_some/final" --set objects=16 --set steps=400 \
  --set 'kinds={position = 0.9, counting = 0.1}'
train base base_judge base_judge --set start="$out/base_relations/final"
train base base_see base_see --set start="$out/base_judge/final"
train base base_look base_look --set start="$out/base_see/final"
secondlook eval mini-geneval --model "$out/base_look/final" --out "$out/geneval" --device "$device"
secondlook eval mini-questions --model "$out/base_look/final" --out "$out/questions" --device "$device"
secondlook show "$out/base_look"
