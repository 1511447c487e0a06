# Everything the tests need on plain Debian 12: no kernel module and no service, only privileges.
#
#   docker build --tag tail-latency-testbed .
#   docker run --rm --init --privileged tail-latency-testbed
#   docker run --rm --init --privileged --volume "$PWD/runs:/testbed/runs" tail-latency-testbed scripts/demo
#
# scripts/container follows the same instructions where there is no container engine; it knows FROM, ENV, WORKDIR, COPY,
# RUN and CMD in the forms used here.
FROM debian:bookworm-slim
ENV LANG=C.UTF-8
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates git
WORKDIR /testbed
COPY . .
RUN scripts/setup --image && scripts/ryu && scripts/tritonclient
CMD ["scripts/test"]
