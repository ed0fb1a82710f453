# Settings of scripts/r1.sh for a trial: the same stages, two steps each, a model of random weights and a judge that guesses.
base=$out/tiny/model size=7b gpus=8 memory=80 files=$out/tiny/files seeds=$out/tiny/seeds.txt
benchmarks=dpg edit_benchmarks=pie
export RANKS=1 RESTARTS=0 OMP_NUM_THREADS=1
url="http://127.0.0.1:$PORT/v1"

judges="[{kind = \"vlm\", url = \"$url\", model = \"guess\"}]"
small=(--set device=cpu)
data_settings=("${small[@]}" --set "rewards=$judges" --set "prompts=$seeds" --set 'against=[]' --set n_prompts=4
  --set "expand={url = \"$url\", model = \"guess\", short = 2, long = 3}"
  --set "generators=[{kind = \"model\", model = \"$base\", images = 8}]")
train_settings=(--set runtime.device=cpu --set runtime.dtype=float32 --set steps=2 --set optim.warmup_steps=0 --set runtime.threads=1
  --set runtime.save_every=1)
sft_settings=(--set batch_size=8)
sanity_settings=(--n 3 --sure 0.5)
rl_settings=(--set "rewards=$judges" --set optim.convert_step=0 --set rollout.prompts_per_step=2 --set rollout.group_size=3
  --set reward_checks.min_separation=0.0)
writer=(--url "$url" --model guess --pictures 4)
edit_data_settings=("${small[@]}" --set "rewards=$judges" --set "prompts=$out/edits/edits.jsonl"
  --set "generators=[{kind = \"model\", model = \"$base\", images = 8}]")
bench_settings=(--samples 1)
answerer_settings=(--vqa guess --url "$url")
pie_settings=(--clip "$out/tiny/clip" --dino "$out/tiny/dino")
simulate_settings=(--part rollout)
