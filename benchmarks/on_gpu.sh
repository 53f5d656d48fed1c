#!/usr/bin/env bash
# What training costs on one GPU, in under 8 minutes: one JSON of images/s, tokens/s, memory, MFU and the share of time
# spent waiting for data, each contender beside its peer.
#
#     bash benchmarks/on_gpu.sh            # on a machine with a GPU
#     bash benchmarks/on_gpu.sh --small    # tiny models on a CPU, to try the script
#
# Nothing is installed or fetched. Packages that the machine lacks may lie in a folder beside (SITE, gpu_site by default):
#     pip install --target gpu_site --no-deps --python-version 3.12 datasets dill multiprocess evaluate \
#         nltk rouge_score sacrebleu pydicom deepspeed hjson py-cpuinfo msgpack
# Each part has its own process and time limit; what fails or is missing leaves its reason, and the others go on. The
# JSON is written anew after every part: OUT/on_gpu.json, and OUT/on_gpu.log with all output (OUT: on_gpu by default).
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-on_gpu}
PYTHON=${PYTHON:-python3}
PEAK=${PEAK_TFLOPS:-989}
BUDGET=${BUDGET:-460}
TIMES=1 # the limits of the parts; a CPU gets three times as long
small="" device=cuda batch=64 caption=(--size published --batch 32 --steps 12 --studies 800 --workers 8)
if [ "${1:-}" = --small ]; then
  small=--small device=cpu batch=4 caption=(--size tiny --batch 8 --steps 4 --studies 200)
  TIMES=3 BUDGET=1400
fi
mkdir -p "$OUT"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=".:${PYTHONPATH:+$PYTHONPATH:}${SITE:-gpu_site}" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export HF_MEDVLM_CACHE="$work/cache" PYTHONFAULTHANDLER=1
: >"$OUT/on_gpu.log"
begun=$SECONDS

merge() {
  "$PYTHON" - "$work" "$OUT/on_gpu.json" <<'PY'
import json, pathlib, sys
folder, target = map(pathlib.Path, sys.argv[1:])
found = {}
for file in sorted(folder.glob("*.rc")):
    name = file.stem
    lines = (folder / f"{name}.out").read_text(errors="replace").strip().splitlines()
    errors = (folder / f"{name}.err").read_text(errors="replace").strip().splitlines()
    rc, seconds = file.read_text().split()
    part = {"seconds": int(seconds)}
    try:
        part["result"] = json.loads(lines[-1])
    except (IndexError, ValueError):
        limit = "its time was up" if rc in ("124", "137") else ""
        part["failed"] = limit or (errors or lines or ["no output"])[-1][:500]
    found[name.split("-", 1)[1]] = part
target.write_text(json.dumps(found, indent=1) + "\n")
PY
}

number=10
part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$(($2 * TIMES)) left=$((BUDGET - (SECONDS - begun))) start=$SECONDS file
  shift 2
  number=$((number + 1))
  file="$work/$number-$name"
  if [ "$left" -lt "$limit" ]; then limit=$left; fi
  if [ "$limit" -lt 5 ]; then
    echo "no time was left" >"$file.err"; : >"$file.out"; echo "1 0" >"$file.rc"
  else
    timeout -k 5 "$limit" "$@" >"$file.out" 2>"$file.err"
    echo "$? $((SECONDS - start))" >"$file.rc"
  fi
  { echo "== $name: $*"; tail -c 20000 "$file.out"; tail -c 6000 "$file.err"; } >>"$OUT/on_gpu.log"
  merge
  echo "$name: $((SECONDS - start)) s" >&2
}

part machine 30 "$PYTHON" -c '
import importlib.metadata as m, json, os, torch, transformers
has = lambda n: n in {d.metadata["Name"].lower() for d in m.distributions()}
card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
lacks = [n for n in ("datasets", "evaluate", "nltk", "peft", "deepspeed", "pydicom") if not has(n)]
print(json.dumps({"card": card, "torch": torch.__version__, "transformers": transformers.__version__,
                  "cores": os.cpu_count(), "missing": lacks}))'
contrast=("$PYTHON" benchmarks/contrastive.py --device "$device" --batch "$batch" --steps 8 --peak_tflops "$PEAK" $small)
part contrastive_ours 60 "${contrast[@]}" --contender ours
part contrastive_two_towers_stock 60 "${contrast[@]}" --contender two_tower
part chat_lora 120 "$PYTHON" benchmarks/chat.py --steps 8 $small --kind "LoRA"
part chat_lora_stock 100 "$PYTHON" benchmarks/chat.py --steps 8 $small --kind "LoRA, stock Trainer"
part captioning 100 "$PYTHON" benchmarks/captioning.py "${caption[@]}" --rounds 1 --json
part loader 110 "$PYTHON" benchmarks/loader.py --rounds 3 --device "$device" $small --json
part patches_dropped 40 "${contrast[@]}" --contender E
part patches_kept 40 "${contrast[@]}" --contender A
memory=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
if [ -n "$small" ] || [ "$memory" -ge 120 ]; then
  part chat_zero3_offload 150 "$PYTHON" benchmarks/chat.py --steps 2 $small --kind "ZeRO-3, offload"
else
  part chat_zero3_offload 5 sh -c "echo 'its optimizer takes 110 GiB of memory, $memory are free' >&2; exit 1"
fi
cat "$OUT/on_gpu.json"
