"""SFTP version 3 (draft-ietf-secsh-filexfer-02) over any byte channel, pipelined."""
