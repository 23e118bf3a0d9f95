"""Workers: what runs inside a toolchain's environment, one conversion a process. Never imported by the server."""
