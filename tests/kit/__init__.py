"""What tests of several folders share: waiting, fault injection, real servers, services and whole platforms."""
