"""What networks are made of: pooling along bands, units, upsampling, memory formats."""
