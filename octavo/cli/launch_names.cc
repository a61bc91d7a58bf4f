// Names only, sorted. Read from the launchers of SGLang 0.4.6, 0.5.9 and 0.5.23, and from the
// launch lines of slime, miles and AReaL.

#include "octavo/cli/launch_names.h"

#include <span>
#include <string_view>

namespace octavo {
namespace {

// No value.
constexpr std::string_view kSwitches = R"(
--abort-on-priority-when-disabled --checkpoint-engine-wait-weights-before-ready
--collect-tokens-histogram --constrained-json-disable-any-whitespace --dcp-replicate-q-proj
--debug-cuda-graph --delete-ckpt-after-loading --disable-aiter-allreduce-fusion-in-decode
--disable-aiter-allreduce-fusion-in-prefill --disable-attn-tp-gather --disable-chunked-prefix-cache
--disable-cuda-graph --disable-cuda-graph-padding --disable-custom-all-reduce
--disable-decode-cuda-graph --disable-fast-image-processor --disable-flashinfer-autotune
--disable-flashinfer-cutlass-moe-fp4-allgather --disable-hicache-numa-detect
--disable-hybrid-swa-memory --disable-outlines-disk-cache --disable-overlap-schedule
--disable-piecewise-cuda-graph --disable-prefill-cuda-graph --disable-priority-preemption
--disable-shared-experts-fusion --disable-tokenizer-batch-decode
--disaggregation-decode-enable-offload-kvcache --disaggregation-decode-enable-radix-cache
--disaggregation-enable-kv-checksum --dllm-fdfo --enable-adaptive-dispatch-to-encoder
--enable-aiter-allreduce-fusion --enable-amd-monokernel --enable-attn-tp-input-scattered
--enable-broadcast-mm-inputs-process --enable-cache-report --enable-cp-decode-attn-tp
--enable-cudagraph-gc --enable-custom-logit-processor --enable-decoder-swa-bounded-replay
--enable-deepep-moe --enable-deepseek-v4-fp4-indexer --enable-dense-mlp-attn-tp
--enable-dp-attention --enable-dp-attention-local-control-broadcast --enable-dp-lm-head
--enable-draft-weights-cpu-backup --enable-dsa-cache-layer-split --enable-dsa-fused-indexer
--enable-dynamic-batch-tokenizer --enable-dynamic-chunking --enable-elastic-expert-backup
--enable-encoder-swa-bounded-replay --enable-ep-moe --enable-eplb
--enable-expert-distribution-metrics --enable-flashinfer-allreduce-fusion --enable-flashinfer-mla
--enable-flashmla --enable-flexkv --enable-forward-pass-metrics --enable-fp32-lm-head
--enable-fp32-moe-router --enable-fused-moe-sum-all-reduce --enable-fused-qk-norm-rope
--enable-hicache --enable-hierarchical-cache --enable-hisparse --enable-http-worker-reuseport
--enable-http2 --enable-int8-mamba-checkpoint --enable-kv-cache-sharding --enable-layernorm-sp
--enable-layerwise-nvtx-marker --enable-lean-attention --enable-linear-replayssm
--enable-linear-replayssm-spec --enable-linker-mla-dedup --enable-lmcache
--enable-lora-overlap-loading --enable-mamba-cache-stochastic-rounding
--enable-megamoe-for-layernorm-sp --enable-metrics-for-all-schedulers --enable-mfu-metrics
--enable-mis --enable-mixed-chunk --enable-mm-global-cache --enable-mscclpp
--enable-multi-layer-eagle --enable-multimodal --enable-nan-detection --enable-nccl-nvls
--enable-nsa-prefill-context-parallel --enable-nvidia-megakernel --enable-p2p-check
--enable-page-major-kv-layout --enable-paged-experts --enable-pd-role-switch --enable-pdmux
--enable-piecewise-cuda-graph --enable-precise-embedding-interpolation --enable-prefill-cp
--enable-prefill-delayer --enable-prefix-mm-cache --enable-priority-scheduling
--enable-profile-cuda-graph --enable-quant-communications --enable-request-time-stats-logging
--enable-response-store --enable-return-aux-hidden-states --enable-return-hidden-states
--enable-return-indexer-topk --enable-scattered-sconv --enable-session-radix-cache
--enable-shared-experts-attn-tp --enable-single-batch-overlap --enable-streaming-session
--enable-symm-mem --enable-tf32-matmul --enable-tokenizer-batch-encode --enable-torch-compile
--enable-torch-compile-debug-mode --enable-torch-symm-mem --enable-tp-lm-head-all-to-all
--enable-trace --enable-two-batch-overlap --enable-unified-cache-external-linker
--enable-unified-memory --enable-w4a4-mxfp4-megamoe --enable-waterfill
--enforce-disable-flashinfer-allreduce-fusion --enforce-shared-experts-fusion
--experts-shared-outer-loras --export-metrics-to-file --flashinfer-mla-disable-ragged
--keep-mm-feature-on-device --language-model-only --language-only --log-requests
--lora-strict-loading --lora-use-virtual-experts --mlx-enable-sampling --mm-enable-dp-encoder
--no-dcp-replicate-q-proj --no-dllm-fdfo --no-enable-decoder-swa-bounded-replay
--no-enable-dsa-fused-indexer --no-enable-fused-qk-norm-rope --no-enable-tf32-matmul
--no-enable-tp-lm-head-all-to-all --no-experts-shared-outer-loras --no-lora-strict-loading
--no-mm-enable-dp-encoder --no-ple-offload-embedding --no-speculative-enable-w4a4-mxfp4-megamoe
--ple-offload-embedding --pre-warm-nccl --prefill-only-disable-kv-cache
--prefill-round-robin-balance --remote-instance-weight-loader-start-seed-via-transfer-engine
--return-input-ids --return-output-ids --schedule-low-priority-values-first --show-time-cost
--skip-server-warmup --sleep-on-idle --speculative-adaptive
--speculative-dspark-align-verify-tokens-to-graph-tier --speculative-enable-w4a4-mxfp4-megamoe
--speculative-use-block-verification --speculative-use-rejection-sampling --stream-output
--stream-response-default-include-usage --strip-thinking-cache --triton-attention-reduce-in-fp32
--trust-mm-content-hashes --trust-remote-code --trust-request-chat-template --use-ray
--weight-loader-disable-mmap --weight-loader-drop-cache-after-load
--weight-loader-prefetch-checkpoints
)";

// One value.
constexpr std::string_view kOptions = R"(
--asr-max-buffer-seconds --asr-max-concurrent-sessions --attention-backend --batch-notify-size
--bf16-gemm-backend --boundary-reduction --c128-page-size --constrained-json-max-whitespace-cnt
--constrained-json-whitespace-pattern --context-bucket --cp-strategy --cpu-offload-gb
--crash-dump-folder --cuda-graph-backend-decode --cuda-graph-backend-prefill --cuda-graph-config
--cuda-graph-max-bs --cuda-graph-max-bs-decode --cuda-graph-max-bs-prefill
--cuda-graph-max-seq-len-prefill --cuda-graph-prefill-max-context --dcp-comm-backend
--debug-tensor-dump-inject --debug-tensor-dump-input-file --debug-tensor-dump-output-folder
--decode-attention-backend --decode-log-interval --decoupled-spec-bind-endpoint
--decoupled-spec-rank --deepep-config --deepep-dispatcher-output-dtype --deepep-mode
--deepep-v2-mode --default-priority-value --detokenizer-worker-num --disaggregation-bootstrap-port
--disaggregation-decode-allocation-policy --disaggregation-decode-dp
--disaggregation-decode-extra-slots --disaggregation-decode-host-receive-threshold
--disaggregation-decode-polling-interval --disaggregation-decode-retraction-backup
--disaggregation-decode-tp --disaggregation-ib-device --disaggregation-prefill-pp
--disaggregation-transfer-backend --dist-init-addr --download-dir
--dsa-decode-backend --dsa-paged-mqa-logits-backend --dsa-prefill-backend --dsa-topk-backend
--dsa-triton-union --dsv4-attn-backend --dsv4-prefill-backend --dynamic-batch-tokenizer-batch-size
--dynamic-batch-tokenizer-batch-timeout --elastic-ep-backend --elastic-ep-initial-size
--elastic-ep-join-mode --elastic-ep-join-rank-offset --elastic-ep-scale-timeout
--encoder-bootstrap-port --encoder-transfer-backend --engine-info-bootstrap-port
--ep-dispatch-algorithm --ep-num-redundant-experts --eplb-algorithm
--eplb-min-rebalancing-utilization-threshold --eplb-rebalance-layers-per-chunk
--eplb-rebalance-num-iterations --expert-balancedness-report-mode
--expert-distribution-recorder-buffer-size --expert-distribution-recorder-mode
--export-metrics-to-file-dir --extra-metric-labels --file-storage-path
--flashinfer-a2a-dispatch-type --flashinfer-allreduce-fusion-backend
--flashinfer-mxfp4-moe-precision --flexkv-config-file --forward-pass-metrics-ipc-name
--forward-pass-metrics-worker-id --fp4-gemm-backend --fp8-gemm-backend --fp8-gemm-runner-backend
--fuseep-mode --gated-launch-port --gc-warning-threshold-secs --grammar-backend
--grpc-http-sidecar-port --grpc-port --grpc-response-timeout-secs --hicache-host-memory-fraction
--hicache-host-memory-mode --hicache-io-backend --hicache-mem-layout --hicache-ratio --hicache-size
--hicache-storage-backend --hicache-storage-backend-extra-config --hicache-storage-prefetch-policy
--hicache-storage-prefetch-retry-max-attempts --hicache-storage-prefetch-retry-poll-interval
--hicache-write-policy --hierarchical-sparse-attention-extra-config --hisparse-config
--http2-initial-connection-window-size --http2-max-concurrent-streams --image-processor-backend
--init-expert-location --int8-mamba-ckpt-size --kt-cpuinfer --kt-max-deferred-experts-per-token
--kt-method --kt-num-gpu-experts --kt-threadpool-count --kv-canary --kv-canary-real-data
--kv-canary-sweep-interval --kv-events-config --limit-mm-data-per-request --linear-attn-backend
--linear-attn-decode-backend --linear-attn-prefill-backend --linear-attn-verify-backend
--linear-replayssm-cache-len --lmcache-config-file --load-balance-method --load-publish-endpoint
--load-snapshot-publish-interval --log-level-http --log-requests-format --log-requests-level
--lora-backend --lora-drain-wait-threshold --lora-eviction-policy --mamba-backend
--mamba-cache-philox-rounds --mamba-full-memory-ratio --mamba-max-states-per-path
--mamba-radix-cache-strategy --mamba-scheduler-strategy --mamba-ssm-dtype --mamba-track-interval
--max-ep-size --max-loaded-loras --max-lora-chunk-size --max-lora-rank --max-loras-per-batch
--max-mamba-cache-size --max-micro-batch-size --max-prefill-tokens --media-url-max-file-size-mb
--min-free-slots-delay --mm-attention-backend --mm-feature-transport --mm-global-cache-backend
--mm-io-worker-num --mm-max-concurrent-calls --mm-per-request-timeout --mm-preprocess-cache-size-mb
--mm-process-config --mm-processor-worker-num --model-config-parser --model-impl
--model-loader-extra-config --modelexpress-config --moe-a2a-backend --moe-runner-backend
--monokernel-backend --mooncake-ib-device --msprobe-dump-config --multi-item-scoring-delimiter
--n-share-experts-fusion --nccl-init-addr --nccl-port --nsa-decode-backend --nsa-prefill-backend
--nsa-prefill-cp-mode --num-continuous-decode-steps --num-reserved-decode-tokens
--offload-group-size --offload-mode --offload-num-in-group --offload-prefetch-step
--optimistic-prefill-attempts --otlp-service-name --otlp-traces-endpoint --page-size
--paged-experts-num-resident --pdmux-config-path --piecewise-cuda-graph-compiler
--piecewise-cuda-graph-max-tokens --ple-offload-backend --ple-offload-dir --pp-async-batch-depth
--pp-max-micro-batch-size --prefill-attention-backend --prefill-decode-interval
--prefill-decode-interval-min-bs --prefill-delayer-max-delay-ms --prefill-delayer-max-delay-passes
--prefill-delayer-queue-min-ratio --prefill-delayer-token-usage-low-watermark
--prefill-kv-cache-dequant-dtype --prefill-max-requests --priority-scheduling-preemption-threshold
--qsa-indexer-dtype --radix-cache-backend --radix-eviction-policy --radix-eviction-policy-config
--reasoning-parser --remote-instance-weight-loader-backend
--remote-instance-weight-loader-seed-instance-ip
--remote-instance-weight-loader-seed-instance-service-port --retraction-policy
--return-hidden-states-mode --sampling-backend --sampling-mask-max-tokens
--schedule-conservativeness --schedule-policy --scheduler-recv-interval --shared-experts-tp-size
--sidecar --sm-group-num --smg-http-sidecar-port --soft-watchdog-timeout --spec-trace-dir
--speculative-accept-threshold-acc --speculative-accept-threshold-single
--speculative-adaptive-config --speculative-algorithm --speculative-attention-mode
--speculative-dflash-block-size --speculative-domino-candidate-pool-size
--speculative-draft-attention-backend --speculative-draft-kv-cache-dtype
--speculative-draft-load-format --speculative-draft-model --speculative-draft-model-path
--speculative-draft-model-quantization --speculative-draft-model-revision
--speculative-draft-sink-size --speculative-draft-window-size --speculative-dsa-topk-backend
--speculative-dspark-block-size --speculative-dspark-confidence-sts-path
--speculative-dspark-sps-table-path --speculative-eagle-topk --speculative-moe-a2a-backend
--speculative-moe-runner-backend --speculative-ngram-branch-length --speculative-ngram-capacity
--speculative-ngram-external-corpus-max-tokens --speculative-ngram-external-corpus-path
--speculative-ngram-external-sam-budget --speculative-ngram-match-type
--speculative-ngram-max-bfs-breadth --speculative-ngram-max-match-window-size
--speculative-ngram-max-trie-depth --speculative-ngram-min-bfs-breadth
--speculative-ngram-min-match-window-size --speculative-num-draft-tokens --speculative-num-steps
--speculative-token-map --startup-weight-load-mode --swa-full-tokens-ratio --swa-prefix-tails
--tbo-token-distribution-threshold --tokenizer-backend --tokenizer-metrics-custom-labels-header
--tokenizer-mode --tokenizer-worker-num --tool-call-parser --tool-server --torch-compile-max-bs
--trace-modules --triton-attention-num-kv-splits --triton-attention-split-tile-size
--unified-cache-external-linker-backend --unified-cache-external-linker-config --warmups
--weight-cache-mode --weight-cache-socket --weight-cache-timeout
--weight-loader-prefetch-num-threads
)";

// One value or more.
constexpr std::string_view kLists = R"(
--allowed-media-domains --bucket-e2e-request-latency --bucket-inter-token-latency
--bucket-time-to-first-token --cuda-graph-bs --cuda-graph-bs-decode --cuda-graph-bs-prefill
--debug-tensor-dump-layers --decoupled-spec-connect-endpoints --encoder-register-urls --encoder-urls
--flashinfer-autotune-skip-ops --gc-threshold --generation-tokens-buckets --log-requests-target
--lora-target-modules --numa-node --piecewise-cuda-graph-tokens
--prefill-delayer-forward-passes-buckets --prefill-delayer-wait-seconds-buckets
--prompt-tokens-buckets --remote-instance-weight-loader-send-weights-group-ports
--return-aux-hidden-state-layer-ids --sidecar-args --tokenizer-metrics-allowed-custom-labels
--uvicorn-access-log-exclude-prefixes
)";

constexpr std::string_view kOneProcess = "this is one process that uses all its threads";

// What is accepted in silence, because it happens anyway, and the reason for refusing the rest.
constexpr FixedFlag kFixed[] = {
    {"--tp,--tp-size,--tensor-parallel-size", "1", kOneProcess},
    {"--dp,--dp-size,--data-parallel-size", "1", kOneProcess},
    {"--ep,--ep-size,--expert-parallel-size", "1", kOneProcess},
    {"--pp,--pp-size,--pipeline-parallel-size", "1", kOneProcess},
    {"--moe-dp-size,--moe-data-parallel-size", "1", kOneProcess},
    {"--moe-dense-tp-size", "1", kOneProcess},
    {"--attn-cp-size,--attention-context-parallel-size", "1", kOneProcess},
    {"--attn-dp-size,--attention-data-parallel-size", "1", kOneProcess},
    {"--dcp-size,--decode-context-parallel-size", "1", kOneProcess},
    {"--dwdp-size", "1", kOneProcess},
    {"--nnodes", "1", kOneProcess},
    {"--node-rank", "0", kOneProcess},
    {"--dtype", "auto bfloat16 bf16", "what is not quantized is computed in BF16"},
    {"--device", "cpu auto", "no other device is built"},
    {"--disaggregation-mode", "null", "prefill and decode are not split"},
    {"--decoupled-spec-role", "null", "speculative decoding is not built"},
    {"--sampling-defaults", "model", "other defaults would change what is sampled"},
    {"--preferred-sampling-params", "{}", "other defaults would change what is sampled"},
    {"--default-chat-template-kwargs", "{}", "send chat_template_kwargs with each request"},
    {"--revision", "main", "the model is a folder, which has no revisions"},
    {"--fastapi-root-path", "/", "paths begin at the root"},
};

constexpr RefusedFlag kRefused[] = {
    {"--config", true, "write its flags on the command line"},
    {"--completion-template", true, "prompts are completed as they are"},
    {"--custom-weight-loader", true, "no code of others is run"},
    {"--decrypted-config-file", true, "only config.json is read"},
    {"--decrypted-draft-config-file", true, "only config.json is read"},
    {"--dllm-algorithm", true, "no diffusion model is built"},
    {"--dllm-algorithm-config", true, "no diffusion model is built"},
    {"--enable-lora", false, "LoRA is not built"},
    {"--enable-ssl-refresh", false, "TLS is not built; put a proxy in front"},
    {"--enable-strict-thinking", false, "constrained decoding is not built"},
    {"--enable-watermark", false, "watermarks are not built"},
    {"--encoder-only", false, "no encoder is built"},
    {"--forward-hooks", true, "no code of others is run"},
    {"--grpc-mode", false, "only HTTP is built"},
    {"--hf-chat-template-name", true, "name the template's file with --chat-template"},
    {"--is-embedding", false, "models only generate here"},
    {"--kt-weight-path", true, "weights come from one folder"},
    {"--lora-paths", true, "LoRA is not built"},
    {"--model-checksum", true, "octavo digest tells what a folder or a server holds"},
    {"--modelopt-checkpoint-restore-path", true, "use octavo convert"},
    {"--modelopt-checkpoint-save-path", true, "use octavo convert"},
    {"--modelopt-export-path", true, "use octavo convert"},
    {"--modelopt-quant", true, "use --quantization or --format"},
    {"--quantization-param-path", true, "scales of the KV cache belong to its tokens here"},
    {"--quantize-and-serve", false, "--quantization alone quantizes at load"},
    {"--rl-on-policy-target", true, "the arithmetic of another program is not built"},
    {"--rl-quant-profile", true, "use --quantization or --format"},
    {"--smg-grpc-mode", false, "only HTTP is built"},
    {"--ssl-ca-certs", true, "TLS is not built; put a proxy in front"},
    {"--ssl-certfile", true, "TLS is not built; put a proxy in front"},
    {"--ssl-keyfile", true, "TLS is not built; put a proxy in front"},
    {"--ssl-keyfile-password", true, "TLS is not built; put a proxy in front"},
    {"--torchao-config", true, "use --quantization or --format"},
    {"--true-on-policy-contract", true, "the arithmetic of another program is not built"},
    {"--uno-lora-path", true, "LoRA is not built"},
    {"--watermark-config", true, "watermarks are not built"},
};

}  // namespace

std::string_view IgnoredSwitches() { return kSwitches; }
std::string_view IgnoredOptions() { return kOptions; }
std::string_view IgnoredLists() { return kLists; }
std::span<const FixedFlag> FixedFlags() { return kFixed; }
std::span<const RefusedFlag> RefusedFlags() { return kRefused; }

}  // namespace octavo
