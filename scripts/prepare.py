"""Documents to token shards: reads, filters, drops repeats, tokenizes; on this machine, Slurm or Ray. Killed, it goes on.

python scripts/prepare.py tokenizer=DIR out=corpus 'sources.zh={path: zh/*.jsonl.zst, language: zh, licence: CC-BY-4.0}' \
    'sources.code={path: repositories/, language: code, form: texts}'
python scripts/prepare.py show corpus
python scripts/prepare.py check corpus        # every byte; exit code 3 where something is wrong
python scripts/prepare.py inspect corpus --source zh --shard 0 --at 4096 --length 256
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("prepare")
