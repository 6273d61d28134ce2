#!/bin/sh
# Everything that waits for a GPU, in one go: build, check kernels against the definition, time what passes.
#
#   sh scripts/gpu_session.sh OUT [SECONDS [TARGET]]
#
# Writes into the folder OUT: build logs, selftest_*.json and .log, bench_*.json, bench.svg, seen.json. SECONDS of wall
# time for all of it (default 570, for a slot of ten minutes); TARGET as for `archc build` (default h100). Needs no
# network: Python 3.11 or later with torch 2.11, Triton 3.6 or 3.7, and archc's own dependencies; fla and transformers
# are peers where they are installed. Exit status 1 if a self-test failed.
set -u

out=${1:?give a folder for the results}
limit=${2:-570}
target=${3:-h100}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
began=$(date +%s)
mkdir -p "$out/packages"
out=$(cd "$out" && pwd)
export PYTHONPATH="$root:$out/packages"

left() { # seconds to the end, at least one
    rest=$((limit - $(date +%s) + began))
    if [ "$rest" -lt 1 ]; then rest=1; fi
    echo "$rest"
}

models=${GPU_SESSION_MODELS:-specs/models/gdn_hybrid_340m.yaml docs/benchmarks/gdn_hybrid_1_3b.yaml}
checked=${GPU_SESSION_CHECKED:-specs/models/gdn_hybrid_340m.yaml specs/models/gla_small.yaml
    specs/models/kda_small.yaml specs/models/mamba2_small.yaml specs/models/rwkv7_small.yaml
    specs/models/xlstm_small.yaml}

cd "$root" || exit 2
nvidia-smi > "$out/nvidia-smi.txt" 2>&1

# Self-tests side by side: what they compile stays in Triton's cache for the bench.
for spec in $checked; do
    name=$(basename "$spec" .yaml)
    (
        "$python" -m archc build "$spec" --target "$target" --out "$out/packages/$name" --force \
            > "$out/build_$name.log" 2>&1 &&
            timeout "$(left)" "$python" -m "$name.selftest" ${GPU_SESSION_SELFTEST:-} \
                --json "$out/selftest_$name.json" > "$out/selftest_$name.log" 2>&1
        echo $? > "$out/selftest_$name.status"
    ) &
done
wait

status=0
for spec in $checked; do
    name=$(basename "$spec" .yaml)
    found=$(cat "$out/selftest_$name.status")
    echo "$name: exit status $found, $(tail -n 1 "$out/selftest_$name.log" 2> /dev/null || echo "not built")"
    if [ "$found" != 0 ]; then status=1; fi
done
"$python" scripts/seen_kernels.py "$out"/selftest_*.json > "$out/seen.json"

# Most of the time goes to the first model and, with it, to the operations; the others get what is left.
groups=operations,decode,model,layer
share=3
for spec in $models; do
    name=$(basename "$spec" .yaml)
    timeout "$(($(left) + 15))" "$python" -m archc bench "$spec" --gpu --target "$target" --only "$groups" \
        --seconds "$(($(left) * share / 4 + 1))" --save "$out/bench_$name.json" ${GPU_SESSION_BENCH:-} \
        > "$out/bench_$name.log" 2>&1
    echo "bench of $name: exit status $?"
    groups=model,layer
    share=4
done
"$python" scripts/plot_benchmarks.py "$out"/bench_*.json > "$out/bench.svg"
echo "$(($(date +%s) - began)) s, results in $out"
exit $status
