#!/bin/bash
# bash make.sh OLD: writes everything but m2kr/, which has to be in the working folder. OLD is a checkout of commit c524d0d with
# its environment in OLD/.venv.
set -e
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
bin=$(realpath "$1")/.venv/bin here=$PWD
options=(
  data=m2kr data.root="$here/m2kr" data.num_workers=0 data.batch_size=8 logger=csv trainer.max_epochs=2
  trainer.log_every_n_steps=1 trainer.enable_progress_bar=false scheduler.warmup_steps=1 optimizer.lr=0.003
  gate=coupled recurrence=evenly retrieval=faiss_flat callbacks.last.every_n_steps=2
  model.num_tokens=2 model.hidden_size=8 model.num_heads=2 model.output_size=4 model.share_towers=true
  model.train_text=false model.train_vision=1
  backbone.text.hidden_size=2 backbone.text.num_attention_heads=1 backbone.text.intermediate_size=4
  backbone.vision.hidden_size=8 backbone.vision.num_attention_heads=2 backbone.vision.intermediate_size=16
  backbone.vision.num_hidden_layers=2 backbone.vision.image_size=10 backbone.vision.patch_size=5
  backbone.image_transform.size=10
)
"$bin/ret-train" "${options[@]}" output_dir="$here/run"

# Of the same config as `run`, killed in the second epoch, after step 7 of 10.
"$bin/ret-train" "${options[@]}" output_dir="$here/interrupted" &
has_step_7='NR == 1 { for (i = 1; i <= NF; i++) if ($i == "step") column = i } $column == 6 { found = 1 } END { exit !found }'
until awk -F, "$has_step_7" interrupted/csv/metrics.csv 2>/dev/null; do sleep 0.01; done
kill -9 $!; wait || true
rm interrupted/checkpoints/frozen.safetensors  # the same bytes as in `run`

"$bin/ret-train" -m "${options[@]}" output_dir="$here/sweep" gate=none,scalar
rm -r sweep/multirun.yaml sweep/*/{.hydra,checkpoints,csv,rankings,*.log}  # config.yaml and *.json identify a finished job
rm -r {run,interrupted,sweep/*}/{examples,*.png}

"$bin/ret-export" checkpoint=run output=exported
passages=(passages=m2kr/jsonl/m2kr/passages/okvqa_passages_test.jsonl image_root=m2kr/images/m2kr/images)
"$bin/ret-index" checkpoint=exported index=index_exact "${passages[@]}"
"$bin/ret-index" checkpoint=run index=index_faiss retrieval=faiss_ivf 'retrieval.factory="IVF2,SQ8"' retrieval.probes=1 "${passages[@]}"
for index in index_exact index_faiss; do
  "$bin/ret-search" index=$index queries=m2kr/jsonl/m2kr/test/okvqa_test.jsonl image_root=m2kr/images/m2kr/images top_k=5 \
    output=$index.jsonl
done

"$bin/python" - <<END
from safetensors.torch import save_file
from ret_lightning import RetRetriever

image = "m2kr/images/m2kr/images/sub/1.png"
pairs = [("What is fact 1?", image), ("What is fact 1?", None), (None, image)]
retriever = RetRetriever.from_pretrained("exported")
save_file({"queries": retriever.encode_queries(pairs), "passages": retriever.encode_passages(pairs)}, "vectors.safetensors")
END
