-- SHA-256 of the certificate: whoever has a stolen signing key can write any serial number, and not the certificate that
-- has it. Unknown for those that were signed before it was kept.
ALTER TABLE svids ADD COLUMN sha256 BLOB;
