"""What moves IP packets between a TUN and a transport."""
