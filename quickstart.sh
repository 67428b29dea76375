#!/usr/bin/env bash
# The whole course in one command, and its table of contents: every command is printed before it runs.
#
#   bash quickstart.sh               synthetic stories (no network but the package index): 5 to 13 minutes on 2 CPU cores
#   bash quickstart.sh zh            the same with synthetic stories in Chinese: 8 to 15 minutes
#   bash quickstart.sh tinystories   the same with the real TinyStories
#   bash quickstart.sh chat          in Chinese, no network: a chat that calculates, and an exam for it: 5 to 8 minutes on 2 CPU cores
#   bash quickstart.sh test          ruff and pytest
#
# Run again, it does only what is missing. It may be stopped at any moment, in any way: Ctrl-C, a closed terminal,
# a power cut. A training that was interrupted resumes, and ends as it would have.
set -euo pipefail
cd "$(dirname "$0")"
mode=${1:-synthetic}
[ "$mode" = "#" ] && mode=synthetic # zsh passes on a comment that is pasted with the command
case $mode in synthetic | zh | tinystories | chat | test) ;; *) echo "quickstart.sh: no mode '$mode' (synthetic, zh, tinystories, chat, test)" >&2; exit 2 ;; esac

run() {
    printf '\n$'
    printf ' %q' "$@"
    printf '\n'
    "$@"
}
trap 'exit 130' INT # Ctrl-C ends a training early, and then all of this

# Only one at a time. A quickstart.sh that is killed alone leaves its last command running, which has this folder, too.
python=${PYTHON:-python3}
exec 9<.
take_folder() { "$python" -c "import fcntl; fcntl.flock(9, fcntl.LOCK_EX $1)" 2>/dev/null; }
take_folder "| fcntl.LOCK_NB" || { echo "another quickstart.sh, or what is left of one, is at work here: waiting for it"; take_folder "" || true; }

# 1. Python packages, in a virtual environment of their own; its activate is written last
if ! { [ -x .venv/bin/python ] && [ -s .venv/bin/activate ]; }; then
    run "$python" -m venv --clear .venv || { echo "quickstart.sh: this needs Python 3.10 or newer, with venv: on Debian, Ubuntu and WSL, sudo apt install python3-venv" >&2; exit 1; }
fi
export PATH="$PWD/.venv/bin:$PATH" # and not by activate, which knows only the place where the folder was made
unset PYTHONHOME
for file in requirements.txt extras/requirements.txt; do
    [ "$file" = requirements.txt ] || [ "$mode" = test ] || continue
    installed=.venv/${file//\//-}
    cmp -s "$file" "$installed" && continue
    again=
    [ ! -e .venv/unfinished ] || again=--ignore-installed # pip was killed: what it knows as installed may be half there
    touch .venv/unfinished
    run python -m pip install --quiet --disable-pip-version-check $again -r "$file"
    cp "$file" "$installed"
    rm .venv/unfinished
done

if [ "$mode" = test ]; then
    run python -m ruff check .
    run python -m pytest --quiet
    exit
fi

device=$(python -c 'from devices import *; print(find_device("auto"), "-- CUDA:", device_error("cuda") or "works")')
printf '\ndevice: %s\n' "$device"

train() { # FOLDER OPTIONS: a new training, or the rest of one that was interrupted
    if [ -e "$1/last.pt" ] || [ -e "$1/ckpt.pt" ]; then set -- "$1" --init_from=resume; fi
    run python train.py --out_dir="$1" "${@:2}"
}

if [ "$mode" = chat ]; then
    data=data_chat out=output_chat
    size=(--dim=64 --n_layers=3 --n_heads=4 --n_kv_heads=4)
    recipe=(--batch_size=4 --gradient_accumulation_steps=1 --compile=false --optimizer=muon --schedule=wsd)
    recipe+=(--learning_rate=1.5e-2 --warmup_iters=20 --eval_iters=20 --log_interval=10)

    # Texts and conversations, a tokenizer, ids
    [ -e $data/synthetic_sums_chats.json ] || run python prepare_data.py synthesize --data_dir=$data
    [ -e $data/seq_monkey_datawhale.jsonl ] || run python prepare_data.py pretrain --data_dir=$data
    [ -e $data/BelleGroup_sft.jsonl ] || run python prepare_data.py sft --data_dir=$data
    [ -e $data/tokenizer_k/tokenizer.json ] || run python train_tokenizer.py --data_path=$data/seq_monkey_datawhale.jsonl --save_dir=$data/tokenizer_k --vocab_size=512 --split_digits=True
    run python prepare_data.py pretokenize --data_dir=$data --tokenizer=$data/tokenizer_k
    run python prepare_data.py pretokenize_sft --data_dir=$data --tokenizer=$data/tokenizer_k --max_seq_len=256

    # Pretraining, fine-tuning, the exam, the chat
    train $out --vocab_source=$data/seq_monkey --max_iters=300 --eval_interval=100 "${size[@]}" "${recipe[@]}"
    train ${out}_sft --init_from=$out/ckpt.pt --vocab_source=$data/belle_sft --max_iters=4800 --eval_interval=800 "${recipe[@]}"
    run python -m extras.exam --checkpoint=${out}_sft/ckpt.pt
    run python -m extras.page --checkpoint=${out}_sft/ckpt.pt --out=${out}_sft/page.html
    printf '\n你好！可以问：三十七加四十五等于几？ 再减八呢？ 你会什么？ （网页 page: %s）\n' ${out}_sft/page.html
    run python sample.py --checkpoint=${out}_sft/ckpt.pt --chat --temperature=0
    exit
fi

# 2. A size and a length that fit the machine. The sizes of vocabularies are multiples of 64, since GPUs
#    multiply in tiles of that size.
if [ "${device%% *}" = cuda ]; then
    vocab=4096
    size=(--dim=288 --n_layers=8 --n_heads=9 --n_kv_heads=3 --batch_size=64 --gradient_accumulation_steps=2) # heads of 32
    length=(--max_iters=2500 --warmup_iters=100 --eval_interval=500 --log_interval=10) # 82 million tokens; zh 123
    learning_rate=7e-3
    megabytes=200 # of synthetic stories: they are read 1.2 times
    small=False
else
    vocab=2048
    size=(--dim=96 --n_layers=4 --n_heads=3 --n_kv_heads=3 --batch_size=8 --gradient_accumulation_steps=1)
    length=(--max_iters=3000 --warmup_iters=20 --eval_interval=1000 --eval_iters=20 --log_interval=10)
    learning_rate=1e-2 # smaller models take larger steps
    megabytes=30 # read less than once
    small=True
    if [ "$mode" = zh ]; then
        size+=(--batch_size=6) # of 384 tokens
        length+=(--max_iters=4500) # rare characters are three tokens: copying them is learned later
    elif [ "$mode" = tinystories ]; then # they have more words, plots and turns: a larger model
        size=(--dim=192 --n_layers=4 --n_heads=6 --n_kv_heads=6 --batch_size=16 --gradient_accumulation_steps=1)
        length=(--max_iters=1000 --warmup_iters=20 --eval_interval=250 --eval_iters=20 --log_interval=10)
    fi
fi
recipe=(--optimizer=muon --learning_rate=$learning_rate --schedule=wsd)
if [ "$mode" != tinystories ]; then # half of the stories or more fit a sequence, and their ends refer to their beginnings
    recipe+=(--whole_stories=True)
fi

# 3. Stories, a tokenizer, ids
vocab_options=()
prompt="One day, Lily met a Shoggoth"
beginning="Once upon a time"
if [ "$mode" = synthetic ]; then
    data=data out=output
    vocab=1024 # the names of the stories are put together from the pieces of such a vocabulary
    [ -e $data/TinyStories_all_data/data00.json ] || run python tinystories.py synthesize --megabytes=$megabytes --data_dir=$data
elif [ "$mode" = zh ]; then
    data=data_zh out=output_zh
    prompt="有一天，莉莉遇到了一只修格斯"
    beginning="从前"
    vocab=1216 # the characters of the stories, and bytes
    vocab_options=(--longest_piece=1) # a token is a character, or a third of a rare one
    size+=(--max_seq_len=384) # so a story has more of them
    [ -e $data/TinyStories_all_data/data00.json ] || run python tinystories.py synthesize --language=zh --megabytes=$megabytes --data_dir=$data
else
    data=data_tinystories out=output_tinystories
    [ -e $data/TinyStories_all_data/data00.json ] || run python tinystories.py download --small=$small --data_dir=$data
fi
[ -e $data/tok$vocab.model ] || run python tinystories.py train_vocab --vocab_size=$vocab ${vocab_options[@]+"${vocab_options[@]}"} --data_dir=$data
run python tinystories.py pretokenize --vocab_size=$vocab --data_dir=$data

# 4. Training
train $out --vocab_size=$vocab --data_dir=$data "${size[@]}" "${length[@]}" "${recipe[@]}"

# 5. Stories
run python sample.py --checkpoint=$out/ckpt.pt --prompt="$prompt" --max_new_tokens=400
run python sample.py --checkpoint=$out/ckpt.pt --prompt="$beginning" --num_samples=3 --max_new_tokens=400
[ "$mode" = tinystories ] || run python -m extras.story_check --checkpoint=$out/ckpt.pt --num_stories=64 --data_dir=$data

# 6. The model as a page, which any browser opens
run python -m extras.page --checkpoint=$out/ckpt.pt --prompt="$prompt" --out=$out/page.html
