ARG SERVICES
ARG APART
FROM $APART AS apart
FROM $SERVICES
COPY --from=apart / /
COPY Client.java /opt/client/Client.java
RUN ecj -proc:none --release 17 -d /opt/client /opt/client/Client.java
