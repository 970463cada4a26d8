# Images of Sidewind. The context is target/image, which `make image` fills with each image's whole file system: the
# binary, the C library that it is linked with, and nothing else. No shell, no package manager, nothing to pull.

FROM scratch AS sidewind
COPY sidewind/ /
# A new volume takes over the owner of the directory that it is mounted on.
COPY --chown=65532:65532 empty/ /var/lib/sidewind/
USER 65532:65532
EXPOSE 15010 15014
VOLUME /var/lib/sidewind
ENTRYPOINT ["/sidewind"]
CMD ["serve"]

# 1337 is the user whose connections `sidewind-proxy redirect` leaves alone. An archive, since COPY would drop the marks on
# the program by which that user gets the capabilities that a pod adds to look for Airflow's tasks (docs/airflow.md).
FROM scratch AS sidewind-proxy
ADD sidewind-proxy.tar /
USER 1337:1337
EXPOSE 15008 15020
ENTRYPOINT ["/sidewind-proxy"]
CMD ["run"]

# Runs once, as root with NET_ADMIN, in the network namespace of the workload. It carries nft beside the proxy.
FROM scratch AS sidewind-proxy-init
COPY sidewind-proxy-init/ /
USER 0:0
ENTRYPOINT ["/sidewind-proxy", "redirect"]
