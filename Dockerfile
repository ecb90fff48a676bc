# One image per program: nothing but the static binary. Build with `make images`, or from the folder of binaries:
#   docker build --target tp-manager -f Dockerfile dist

FROM scratch AS tp-manager
LABEL org.opencontainers.image.title="tp-manager" org.opencontainers.image.licenses="Apache-2.0"
COPY tp-manager /tp-manager
USER 65532:65532
ENTRYPOINT ["/tp-manager"]

FROM scratch AS tp-agent
LABEL org.opencontainers.image.title="tp-agent" org.opencontainers.image.licenses="Apache-2.0"
COPY tp-agent /tp-agent
USER 65532:65532
ENTRYPOINT ["/tp-agent"]

# For tests, demo and benchmarks only.
FROM scratch AS tp-sample
LABEL org.opencontainers.image.title="tp-sample" org.opencontainers.image.licenses="Apache-2.0"
COPY tp-sample /tp-sample
USER 65532:65532
ENTRYPOINT ["/tp-sample"]
CMD ["serve"]
