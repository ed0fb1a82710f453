# Settings of scripts/r1.sh at the paper's size; what the environment says goes first.
base=${MODEL:-deepseek-ai/Janus-Pro-7B}
size=${SIZE:-7b}         # of the recipes: 1b or 7b
gpus=${GPUS:-8}          # that train, all nodes together
memory=${MEMORY:-80}     # GiB of one
files=${FILES:-$out/files}
seeds=$files/seeds.txt
benchmarks=${BENCHMARKS:-geneval compbench dsg}
edit_benchmarks=${EDIT_BENCHMARKS:-}   # pie and gedit want their authors' pictures in FILES
judge_url=${JUDGE_URL:-http://localhost:8000/v1} judge_model=${JUDGE_MODEL:-OpenGVLab/InternVL2_5-26B}
writer_url=${WRITER_URL:-http://localhost:8001/v1} writer_model=${WRITER_MODEL:-Qwen/Qwen2.5-32B-Instruct}

judges="[{kind = \"vlm\", url = \"$judge_url\", model = \"$judge_model\", answers = \"$out/answers.sqlite\", start_patience = 20.0"
judges+=", decomposer_url = \"$writer_url\", decomposer_model = \"$writer_model\"}]"
against=$(sed -n 's|^  "out/r1/files/\(.*\)",$|"'"$files"'/\1"|p' src/secondlook/recipes/data.toml | paste -sd, -)
data_settings=(--set "rewards=$judges" --set "against=[$against]" --set "prompts=$seeds" --set "expand={url = \"$writer_url\", model = \"$writer_model\", short = 20, long = 30}")
train_settings=()
sft_settings=()
sanity_settings=()
rl_settings=(--set "rewards=$judges")
writer=(--url "$writer_url" --model "$writer_model")
edit_data_settings=(--set "rewards=$judges" --set "against=[$against]" --set "prompts=$out/edits/edits.jsonl")
bench_settings=(--device cuda)
answerer_settings=(--vqa "$judge_model" --url "$judge_url") # of compbench, dsg, dpg and gedit
pie_settings=()
simulate_settings=()
