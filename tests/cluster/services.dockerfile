ARG BASE
FROM $BASE
# PostgreSQL's programs are not on Debian's PATH: the version in it is not fixed here.
RUN ln -s /usr/lib/postgresql/*/bin/initdb /usr/lib/postgresql/*/bin/postgres /usr/local/bin/
CMD ["/bin/bash"]
