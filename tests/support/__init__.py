"""What tests share: real servers on loopback, fakes and recorders."""
