#!/usr/bin/env python3
"""Reads and writes Copse from another language, over gRPC.

Nothing here comes from Copse but `files.proto`: the two modules imported below are generated from
it by the standard tool (see README.md in this directory). `copse serve` is the other end; it holds the
capability and the keys, so what passes here is plain files.

    copse_files.py ADDRESS stat [PATH]
    copse_files.py ADDRESS ls [PATH] [--recursive] [--prefix TEXT]
    copse_files.py ADDRESS read PATH [--offset N] [--length N]     bytes go to standard output
    copse_files.py ADDRESS put FILE [FILE...]                      prints the new capability

ADDRESS is what `copse serve --grpc` was given: unix:/path/to/socket or 127.0.0.1:PORT.
"""

import argparse
import os
import sys

import grpc

from copse.files.v1 import files_pb2 as files
from copse.files.v1 import files_pb2_grpc as files_grpc

PIECE_BYTES = 1 << 20  # the most that one message of a put may carry
CONNECT_SECONDS = 20  # until the other end must answer


def stat(stub, args):
    return show(stub.Stat(files.StatRequest(path=args.path)).entry)


def show(entry):
    kind = {files.KIND_FILE: "-", files.KIND_DIRECTORY: "d", files.KIND_SYMLINK: "l"}[entry.kind]
    target = " -> " + entry.symlink_target.decode(errors="replace") if entry.symlink_target else ""
    print(
        f"{kind} {entry.mode:04o} {entry.size:>12} "
        f"{entry.mtime_seconds}.{entry.mtime_nanos:09} {entry.path!r}{target}"
    )


def ls(stub, args):
    request = files.ListRequest(path=args.path, recursive=args.recursive, prefix=args.prefix)
    for response in stub.List(request):
        for entry in response.entries:
            show(entry)


def read(stub, args):
    position = args.offset
    for response in stub.Read(
        files.ReadRequest(path=args.path, offset=args.offset, length=args.length)
    ):
        # The stream is in order and without holes; a client that relies on it may as well look.
        if response.offset != position:
            raise SystemExit(f"expected offset {position}, got {response.offset}")
        position += len(response.data)
        sys.stdout.buffer.write(response.data)


def put(stub, args):
    def requests():
        for path in args.files:
            status = os.stat(path)
            seconds, nanos = divmod(status.st_mtime_ns, 10**9)
            yield files.PutRequest(
                file=files.PutFile(
                    path=os.path.basename(path),
                    mode=status.st_mode & 0o777,
                    mtime_seconds=seconds,
                    mtime_nanos=nanos,
                )
            )
            with open(path, "rb") as file:
                while data := file.read(PIECE_BYTES):
                    yield files.PutRequest(data=data)

    response = stub.Put(requests())
    print(response.capability)
    print(f"{response.files} files, {response.bytes} bytes", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description="Stat, list, read and put files over gRPC.")
    parser.add_argument("address")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("stat")
    command.add_argument("path", nargs="?", default="")
    command.set_defaults(run=stat)
    command = commands.add_parser("ls")
    command.add_argument("path", nargs="?", default="")
    command.add_argument("--recursive", action="store_true")
    command.add_argument("--prefix", default="")
    command.set_defaults(run=ls)
    command = commands.add_parser("read")
    command.add_argument("path")
    command.add_argument("--offset", type=int, default=0)
    command.add_argument("--length", type=int, default=0)
    command.set_defaults(run=read)
    command = commands.add_parser("put")
    command.add_argument("files", nargs="+")
    command.set_defaults(run=put)
    args = parser.parse_args()

    # A unix socket has no host name; gRPC would send an escaped path as one, which HTTP/2 servers may refuse.
    options = [("grpc.default_authority", "localhost")] if args.address.startswith("unix:") else []
    with grpc.insecure_channel(args.address, options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise SystemExit(f"nobody answers at {args.address}")
        try:
            args.run(files_grpc.FilesStub(channel), args)
        except grpc.RpcError as error:
            # The code is for programs: exit codes 2 and up, one for each gRPC status.
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            raise SystemExit(error.code().value[0] + 1)


if __name__ == "__main__":
    main()
