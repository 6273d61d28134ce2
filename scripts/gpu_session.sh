#!/bin/sh
# Everything that waits for a GPU, in one go: build, check kernels against the definition, time what passes.
#
#   sh scripts/gpu_session.sh OUT [SECONDS [TARGET]]
#
# Writes into the folder OUT: build logs, selftest_*.json and .log, bench_*.json, bench.svg, seen.json, and all of these
# as results.tar.gz after each step. SECONDS of wall time for all of it (default 570, for a slot of ten minutes); TARGET
# as for `archc build` (default h100). Run again with the same OUT, it goes on where it ended. Needs no network: Python
# 3.11 or later with torch 2.11, Triton 3.6 to 3.9, and archc's own dependencies (ruff among them); fla (the packages
# flash-linear-attention and fla-core) and transformers are peers where they are installed. Exit status 1 if a self-test
# failed, 2 if archc does not run here.
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

pack() { # everything but the packages, in one file
    (cd "$out" && tar czf results.part ./*.txt ./*.log ./*.json ./*.svg 2> /dev/null
    mv results.part results.tar.gz)
}

cd "$root" || exit 2
nvidia-smi > "$out/nvidia-smi.txt" 2>&1
# Whatever is missing here is said at once, and not by each of many logs.
if ! "$python" -c 'import archc.cli, networkx, ruff, torch' || ! "$python" -m archc check $checked; then exit 2; fi

# Self-tests side by side, in at most half of the time: what they compile stays in Triton's cache for the bench. Nothing
# is compiled ahead of time: the self-test says what this GPU makes of the kernels.
count=$(echo $checked | wc -w)
threads=$(($(getconf _NPROCESSORS_ONLN) / count + 1))
for spec in $checked; do
    name=$(basename "$spec" .yaml)
    if grep -q '"finished": true' "$out/selftest_$name.json" 2> /dev/null; then continue; fi
    (
        "$python" -m archc build "$spec" --target "$target" --out "$out/packages/$name" --force --no-verify \
            > "$out/build_$name.log" 2>&1 &&
            OMP_NUM_THREADS=$threads timeout "$(($(left) / 2 + 1))" "$python" -m "$name.selftest" \
                ${GPU_SESSION_SELFTEST:-} --json "$out/selftest_$name.json" > "$out/selftest_$name.log" 2>&1
        echo $? > "$out/selftest_$name.status"
    ) &
done
wait

status=0
for spec in $checked; do
    name=$(basename "$spec" .yaml)
    found=$(cat "$out/selftest_$name.status")
    log=$out/selftest_$name.log
    if [ ! -e "$log" ]; then log=$out/build_$name.log; fi
    echo "$name: exit status $found, $(tail -n 1 "$log")"
    if [ "$found" != 0 ]; then status=1; fi
done
"$python" scripts/seen_kernels.py "$out"/selftest_*.json > "$out/seen.json"
pack

# Most of the time goes to the first model and, with it, to the operations; the others get what is left.
groups=operations,decode,model,layer
share=3
for spec in $models; do
    name=$(basename "$spec" .yaml)
    end=$(($(date +%s) + $(left) * share / 4 + 1))
    for try in 1 2 3 4; do
        rest=$((end - $(date +%s)))
        if [ "$rest" -lt 1 ]; then break; fi
        timeout "$((rest + 15))" "$python" -m archc bench "$spec" --gpu --target "$target" --only "$groups" \
            --seconds "$rest" --save "$out/bench_$name.json" --resume ${GPU_SESSION_BENCH:-} \
            >> "$out/bench_$name.log" 2>&1
        found=$?
        echo "bench of $name: exit status $found"
        pack
        if [ "$found" != 3 ]; then break; fi # 3: a kernel left the device unusable, and a new process goes on
    done
    groups=model,layer
    share=4
done
"$python" scripts/plot_benchmarks.py "$out"/bench_*.json > "$out/bench.svg"
pack
echo "$(($(date +%s) - began)) s, results in $out"
exit $status
