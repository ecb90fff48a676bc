ARG BASE
FROM $BASE
# PostgreSQL's programs are not on Debian's PATH: the version in it is not fixed here.
RUN ln -s /usr/lib/postgresql/*/bin/initdb /usr/lib/postgresql/*/bin/pgbench /usr/lib/postgresql/*/bin/postgres /usr/local/bin/
# A user to log in as, by a key that whoever has the image has.
RUN useradd --uid 1000 --create-home --shell /bin/bash app && mkdir /home/app/.ssh && \
    ssh-keygen -q -t ed25519 -N '' -f /home/app/.ssh/id_ed25519 && ssh-keygen -q -t ed25519 -N '' -f /home/app/.ssh/host && \
    cp /home/app/.ssh/id_ed25519.pub /home/app/.ssh/authorized_keys && chown -R app /home/app
COPY peer /usr/local/bin/peer
CMD ["/bin/bash"]
