"""The README.txt of every vault."""

README = """\
This folder is a backup made by hostbackup. You can read it without hostbackup.
===============================================================================

To look at it: open the folder "latest".

  latest/web/NAME/      the files of a web site, as they were on the old server
  latest/mail/USER/     a mailbox as a Maildir: one file a message, in "cur"; most mail programs can import it
  latest/sieve/USER/    the filters of a mailbox (Sieve scripts); "active" leads to the one in force
  latest/local/NAME/    folders that were on the machine that made the backup
  latest/SHA256SUMS     the checksum of every file: run  sha256sum -c SHA256SUMS  inside "latest"

Look here, don't work here. The files in "latest" share their space with the backup itself: a program that changes one of them
may damage the backup. To get files that you can work with, run  hostbackup restore  or copy them to another place first.
Changes in "latest" are undone by the next run.

  objects/     the contents of every file and message that was ever backed up; a file's name is the SHA-256 of its contents
  manifests/   text files that say which name, date and permissions belong to which contents
  snapshots/   one text file a run: what there was at that time
  evidence/    what was proven, when, and how
  state/       what the next run needs to know; do not delete it
  incoming/    files being written         damaged/   files found to be damaged, kept for you
  lock         says who is at work here

Do not delete, rename or edit anything outside "latest". The format is described in hostbackup's docs/vault-format.md.


このフォルダーは hostbackup が作ったバックアップです。hostbackup がなくても読めます。
==============================================================================

中を見るには「latest」フォルダーを開いてください。

  latest/web/名前/        ウェブサイトのファイル（旧サーバーにあったとおり）
  latest/mail/ユーザー/   メールボックス（Maildir 形式。「cur」の中の1ファイルが1通。多くのメールソフトで取り込めます）
  latest/sieve/ユーザー/  メールの振り分けルール（Sieve スクリプト。「active」が有効なもの）
  latest/local/名前/      バックアップを実行したパソコンにあったフォルダー
  latest/SHA256SUMS       すべてのファイルのチェックサム。「latest」の中で  sha256sum -c SHA256SUMS  を実行すると確認できます

ここでは「見るだけ」にしてください。「latest」の中のファイルはバックアップ本体と中身を共有しています。書き換えるとバックアップが壊れることがあります。
作業用のファイルが必要なときは  hostbackup restore  を使うか、先に別の場所へコピーしてください。
「latest」の中での変更は、次回の実行で元に戻ります。

「latest」以外のものは、削除・名前の変更・編集をしないでください。
"""
